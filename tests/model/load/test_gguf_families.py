"""Every family that weitune writes to GGUF is read back: the model of the file is the model that was written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gguf import GGMLQuantizationType, GGUFValueType
from tests.export.formats.gguf_families import FAMILIES, VARIANTS
from tests.families import family_model
from tests.model.load.test_gguf_model import write_tensors
from tests.tiny import tiny_model, tiny_tokenizer
from weitune.errors import ModelError
from weitune.export.source.base_weights import GgufWeights, open_weights
from weitune.gguf.architecture import Architecture
from weitune.gguf.families.find import family_of
from weitune.gguf.header import read_header
from weitune.gguf.metadata import Field, array, boolean, number, real, text
from weitune.gguf.vocabulary import stop_tokens
from weitune.model.load.config import read_config
from weitune.model.load.gguf_model import known
from weitune.model.load.locate import locate
from weitune.model.load.weights import load_weights

_YARN = {
    "rope.scaling.type": text("yarn"),
    "rope.scaling.factor": real(4),
    "rope.scaling.original_context_length": number(64),
}
WRAPPED = ("gemma3", "gemma4")
"""Models with a tower, whose text models are tested."""
KINDS = {**{name: (name, overrides) for name, overrides in FAMILIES.items() if name not in WRAPPED}, **VARIANTS}
SCALED = ("falcon_h1",)
"""Families whose constant factors are in the weights of a file: the parameters differ, the model does not."""


def written(
    path: Path,
    model: Any,
    *,
    also: Mapping[str, Field | None] | None = None,
    without: str = "",
    more: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write ``model`` in float32; ``also`` are metadata to add, or to leave out where they are None."""
    family = family_of(model.config)
    named = {key if key.startswith("tokenizer") else f"{family.name}.{key}": each for key, each in (also or {}).items()}
    metadata = {key: each for key, each in {**family.metadata(), **named}.items() if each is not None}
    tensors = dict(family.computed)
    for name, tensor in model.state_dict().items():
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            tensors.update((part.name, part.of(tensor)) for part in family.parts(name) or ())
    tensors.pop(without, None)
    tensors.update(more or {})
    write_tensors(path, family.name, metadata, tensors, GGMLQuantizationType.F32)
    return path


def loaded(path: Path, precision: str = "fp32") -> Any:
    return load_weights(locate(str(path)), tiny_tokenizer("chatml"), precision=precision, device="cpu").model


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_model_comes_back(kind: str, tmp_path: Path) -> None:
    name, overrides = KINDS[kind]
    model = family_model(name, **overrides).eval()
    read = loaded(written(tmp_path / "tiny.gguf", model))
    expected, found = model.state_dict(), read.state_dict()
    assert found.keys() == expected.keys()
    if name not in SCALED:
        assert [key for key in expected if not torch.allclose(found[key], expected[key], atol=1e-6)] == []
    ids = torch.arange(5, 69).reshape(1, -1)  # beyond the windows of 32 tokens
    with torch.inference_mode():
        assert torch.allclose(read(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_5_text", "deepseek_v3", "gpt_oss"])
def test_what_is_undone_is_rounded_once(name: str, tmp_path: Path) -> None:
    model = family_model(name, **FAMILIES[name])
    biases = {key: 7 + tensor for key, tensor in model.state_dict().items() if "e_score_correction_bias" in key}
    assert bool(biases) == (name == "deepseek_v3")
    model.load_state_dict(biases, strict=False)
    read = loaded(written(tmp_path / "tiny.gguf", model), "bf16").state_dict()
    for key, bias in biases.items():  # transformers keeps them in float32: experts are chosen by their differences
        assert torch.equal(read[key], bias)
    for key, tensor in model.to(torch.bfloat16).state_dict().items():
        assert torch.allclose(read[key].float(), tensor.float(), rtol=2**-7, atol=1e-6), key


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_no_experts_are_none(name: str, tmp_path: Path) -> None:
    """llama.cpp itself writes their number for every model, and -1 for tokens that there are not."""
    model = tiny_model(name)
    none = {"expert_count": number(0), "expert_used_count": number(0)}
    ends = {
        "tokenizer.ggml.tokens": array(["a", "b", "c"], GGUFValueType.STRING),
        "tokenizer.ggml.eos_token_id": number(2),
        "tokenizer.ggml.eot_token_id": number(2**32 - 1),
        "tokenizer.ggml.padding_token_id": number(2**32 - 1),
    }
    path = written(tmp_path / "tiny.gguf", model, also={**none, **ends})
    assert known(read_header(path)) is not None
    assert stop_tokens(read_header(path)) == 2
    read = loaded(path).state_dict()
    assert all(torch.allclose(read[key], tensor, atol=1e-6) for key, tensor in model.state_dict().items())


def test_a_period_stands_for_the_layers_with_a_window(tmp_path: Path) -> None:
    model = family_model("gemma3_text", num_hidden_layers=6, layer_types=None)
    for pattern in (None, number(6)):
        path = written(tmp_path / "tiny.gguf", model, also={"attention.sliding_window_pattern": pattern})
        assert read_config(locate(str(path))).layer_types == model.config.layer_types


def test_layers_that_predict_more_tokens_are_left_out(tmp_path: Path) -> None:
    model = family_model("glm4_moe", **FAMILIES["glm4_moe"])
    also = {"block_count": number(3), "nextn_predict_layers": number(1)}
    block = {"blk.2.attn_q.weight": torch.ones(64, 64), "blk.2.nextn.eh_proj.weight": torch.ones(64, 128)}
    path = written(tmp_path / "tiny.gguf", model, also=also, more=block)
    assert loaded(path).config.num_hidden_layers == 2
    weights = open_weights(locate(str(path)))
    assert isinstance(weights, GgufWeights)
    assert weights.left_out == []
    assert not any(name.startswith("model.layers.2") for name in weights.slots)


@pytest.mark.parametrize("also", [{}, {"rope.scaling.yarn_attn_factor": real(0.1 * math.log(4) + 1)}])
def test_only_layers_without_a_window_are_scaled(also: dict[str, Field | None], tmp_path: Path) -> None:
    default = {"rope_type": "default", "rope_theta": 1e4}
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    model = family_model("olmo3", rope_parameters={"full_attention": yarn, "sliding_attention": default}).eval()
    read = loaded(written(tmp_path / "tiny.gguf", model, also=also))
    ids = torch.arange(5, 69).reshape(1, -1)
    with torch.inference_mode():
        assert torch.allclose(read(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_long_rope_is_read(named: bool, tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    model = family_model(
        "phi3", original_max_position_embeddings=64, max_position_embeddings=256, rope_parameters=rope
    ).eval()  # fmt: skip
    also = {} if named else {"rope.scaling.type": None}
    read = loaded(written(tmp_path / "tiny.gguf", model, also=also))
    ids = torch.arange(5, 105).reshape(1, -1)
    with torch.inference_mode():
        assert torch.allclose(read(ids).logits, model(ids).logits, atol=1e-5)
    path = written(tmp_path / "other.gguf", model, also={"rope.scaling.attn_factor": real(2)})
    with pytest.raises(ModelError, match=r"scales its rotary positions.*attn_factor 2"):
        loaded(path)


def test_a_tower_is_left_out(tmp_path: Path) -> None:
    also = {"vision.block_count": number(2), "mm.tokens_per_image": number(256)}
    more = {"v.patch_embd.weight": torch.ones(4, 4), "mm.input_projection.weight": torch.ones(4, 4)}
    loaded(
        written(tmp_path / "tiny.gguf", family_model("gemma3_text", **FAMILIES["gemma3_text"]), also=also, more=more)
    )


def test_all_stop_tokens_are_read(tmp_path: Path) -> None:
    ends = {f"tokenizer.ggml.{name}_token_id": number(token) for name, token in (("eos", 2), ("eot", 7), ("eom", 2))}
    path = written(tmp_path / "tiny.gguf", family_model("glm4"), also=ends)
    assert read_config(locate(str(path))).eos_token_id == [2, 7]


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("phi3", {"attention.sliding_window": number(2047)}),  # llama.cpp does not heed it
        ("granite", {"ssm.conv_kernel": number(4), "expert_shared_feed_forward_length": number(64)}),
    ],
)
def test_what_llama_cpp_does_not_read_is_not_refused(name: str, also: dict[str, Field | None], tmp_path: Path) -> None:
    loaded(written(tmp_path / "tiny.gguf", family_model(name, **FAMILIES[name]), also=also))


@pytest.mark.parametrize("tensor", ["blk.0.ffn_down.scale", "blk.1.ffn_norm.bias", "another.weight"])
def test_a_tensor_that_transformers_would_leave_out_is_named(tensor: str, tmp_path: Path) -> None:
    path = written(tmp_path / "tiny.gguf", family_model("granite", attention_bias=False), more={tensor: torch.ones(64)})
    with pytest.raises(ModelError, match=rf"has 1 tensors that transformers does not compute with.*{tensor}"):
        loaded(path)


@pytest.mark.parametrize(
    ("name", "also", "message"),
    [
        ("qwen3_moe", {"expert_used_count": None}, r"does not say qwen3moe\.expert_used_count"),
        ("qwen3_moe", {"attention.sliding_window": number(32)}, r"attention\.sliding_window = 32"),
        ("qwen3_moe", {"expert_gating_func": number(2)}, r"expert_gating_func = 2"),
        ("gemma2", {"attn_logit_softcapping": real(30), "attention.clamp_kqv": real(8)}, r"attention\.clamp_kqv = 8"),
        ("granite", {"attention.value_length": number(8)}, r"attention\.value_length = 8, .* 16"),
        ("qwen3_next", {"feed_forward_length": array([1, 2], GGUFValueType.UINT32)}, "differs from layer to layer"),
        ("phi3", {"rope.scaling.type": text("longrope")}, r"scales its rotary positions"),
        ("granite", {"rope.scaling.finetuned": boolean(False)}, r"scales its rotary positions.*finetuned False"),
        ("olmo3", {"rope.scaling.yarn_attn_factor": real(2), **_YARN}, r"scales its rotary positions"),
    ],
)
def test_a_file_that_transformers_would_compute_otherwise_is_refused(
    name: str, also: dict[str, Field | None], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "tiny.gguf", family_model(name, **FAMILIES[name]), also=also)
    with pytest.raises(ModelError, match=message):
        loaded(path)


def test_what_means_nothing_is_not_refused(tmp_path: Path) -> None:
    model = family_model("qwen3_moe", **FAMILIES["qwen3_moe"])
    path = written(tmp_path / "tiny.gguf", model, also={"expert_weights_scale": real(1), "causal": boolean(True)})
    assert loaded(path).config.num_experts == 4


def test_a_missing_half_of_the_experts_is_named(tmp_path: Path) -> None:
    model = family_model("mixtral", **FAMILIES["mixtral"])
    path = written(tmp_path / "tiny.gguf", model, without="blk.1.ffn_up_exps.weight")
    with pytest.raises(ModelError, match=r"lacks 1 weights.*model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        loaded(path)


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_a_family_does_to_a_parameter_can_be_undone(kind: str) -> None:
    name, overrides = KINDS[kind]
    model = family_model(name, **overrides)
    config = model.config
    architecture, undone = Architecture(family_of(config)), set()
    for parameter, tensor in model.state_dict().items():
        names = architecture.tensors_of(parameter)
        if not names:
            continue
        stored = [architecture.to_gguf(parameter, tensor, each) for each in names]
        assert {architecture.parameter_of(each) for each in names} == {parameter}
        back = architecture.to_huggingface(parameter, *stored)
        assert architecture.shape_of(parameter, *(each.shape for each in stored)) == tuple(tensor.shape) == back.shape
        assert torch.allclose(back.to(tensor.dtype), tensor, atol=1e-6)
        undone.add(parameter)
    assert len(undone) > 10
