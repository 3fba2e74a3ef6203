"""GGUF files: what they hold, how they are quantized, that bytes repeat, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from gguf import GGMLQuantizationType, GGUFReader
from tests.export.runs import save_run, silent
from tests.families import family_config
from tests.tiny import longrope, tiny_model, tiny_tokenizer
from weitune import Run
from weitune.errors import ModelError
from weitune.export.formats.gguf_adapter import write_gguf_adapter
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.export_source import open_export_source
from weitune.gguf.architecture import architecture_of_heads
from weitune.gguf.families.dense import qwen3
from weitune.gguf.families.fields import attention_factor, long_attention_factor, rope_factors, rounds_yarn
from weitune.gguf.families.find import family_of
from weitune.gguf.families.operations import interleaved
from weitune.gguf.header import read_header
from weitune.gguf.types import GgufType
from weitune.gguf.vocabulary import end_metadata, vocabulary_metadata


def write(run: Run, path: Path, gguf_type: GgufType = "F32") -> Any:
    source = open_export_source(run)
    write_gguf(path, source, source.merged, gguf_type, template=source.template, progress=silent(""))
    return GGUFReader(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return save_run(tmp_path_factory.mktemp("gguf") / "run", "llama")


@pytest.mark.parametrize(
    ("gguf_type", "matrix", "embedding", "error"),
    [
        ("F32", "F32", "F32", 0),
        ("F16", "F16", "F16", 1e-3),
        ("BF16", "BF16", "BF16", 8e-3),
        ("Q8_0", "Q8_0", "Q8_0", 8e-3),
        ("Q4_0", "Q4_0", "Q8_0", 0.13),
    ],
)
def test_every_type_holds_the_merged_weights(
    run: Run, gguf_type: GgufType, matrix: str, embedding: str, error: float, tmp_path: Path
) -> None:
    reader = write(run, tmp_path / "x.gguf", gguf_type)
    source = open_export_source(run)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == matrix
    assert tensors["token_embd.weight"].tensor_type.name == tensors["output.weight"].tensor_type.name == embedding
    assert tensors["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    for name, module in (("blk.0.ffn_up", "model.layers.0.mlp.up_proj"), ("output", "lm_head")):
        stored = tensors[f"{name}.weight"]
        expected = source.merged.read(f"{module}.weight", torch.float32).numpy()
        actual = dequantize(stored.data, stored.tensor_type).reshape(expected.shape)
        scale = error if name != "output" or gguf_type != "Q4_0" else 8e-3
        assert np.abs(actual - expected).max() <= scale * np.abs(expected).max()


def test_equal_runs_give_equal_bytes(run: Run, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        write(run, tmp_path / f"{name}.gguf", "Q4_0")
        write_gguf_adapter(tmp_path / f"{name}-adapter.gguf", open_export_source(run), silent(""))
        files = [(tmp_path / f"{name}{kind}.gguf").read_bytes() for kind in ("", "-adapter")]
        digests.add(hashlib.sha256(b"".join(files)).hexdigest())
    assert len(digests) == 1


def test_the_row_order_of_llama_can_be_undone() -> None:
    llama = architecture_of_heads("llama", 4, 2)
    q, k = torch.randn(64, 10), torch.randn(32)
    for name, tensor in (("model.layers.0.self_attn.q_proj.weight", q), ("model.layers.0.self_attn.k_proj.bias", k)):
        assert torch.equal(llama.to_huggingface(name, llama.to_gguf(name, tensor)), tensor)
        assert not torch.equal(llama.to_gguf(name, tensor), tensor)
    one_head = architecture_of_heads("llama", 1, 1)
    rows = torch.tensor([0, 1, 2, 10, 11, 12])  # as the function's docstring draws it
    name = "model.layers.0.self_attn.q_proj.bias"
    assert one_head.to_gguf(name, rows).tolist() == interleaved(1)(rows).tolist() == [0, 10, 1, 11, 2, 12]
    assert torch.equal(architecture_of_heads("qwen2", 4, 2).to_gguf(name, q), q)


def test_every_name_comes_back() -> None:
    llama, family = architecture_of_heads("llama", 4, 2), qwen3(tiny_model("qwen3").config)
    for name in tiny_model("qwen3").state_dict():
        parts = family.parts(name)
        assert parts is not None
        assert llama.parameter_of(parts[0].name) == name
    assert llama.parameter_of("rope_freqs.weight") is None
    assert family.parts("model.layers.0.mlp.experts.0.up_proj.weight") is None


def test_a_gguf_base_keeps_what_nobody_changes(run: Run, tmp_path: Path) -> None:
    source = open_export_source(run)
    base = tmp_path / "base.gguf"
    write_gguf(base, source, source.base, "Q4_0", template=source.template_without_system, progress=silent(""))
    second = save_run(tmp_path / "second", "llama", model=str(base))
    reader = write(second, tmp_path / "merged.gguf", "Q4_0")
    before = {tensor.name: tensor for tensor in GGUFReader(base).tensors}
    after = {tensor.name: tensor for tensor in reader.tensors}
    assert list(before) == list(after)
    changed = [name for name in before if not np.array_equal(before[name].data, after[name].data)]
    assert changed == [name for name in before if name.startswith("blk.") and "norm" not in name]
    assert reader.fields["tokenizer.chat_template"].contents() == open_export_source(second).template
    tokens = "tokenizer.ggml.tokens"
    assert reader.fields[tokens].contents() == GGUFReader(base).fields[tokens].contents()


def test_other_families_are_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama")
    (config := Path(run.recipe.model) / "config.json").write_text(config.read_text().replace('"llama"', '"stablelm"'))
    with pytest.raises(ModelError, match="family stablelm") as error:
        write(run, tmp_path / "x.gguf")
    assert "merged" in error.value.fix


def test_a_sliding_window_is_refused() -> None:
    config = tiny_model("mistral", sliding_window=64).config
    with pytest.raises(ModelError, match="window of 64 tokens"):
        family_of(config)


def test_dora_is_refused_for_an_adapter_file(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama", variant="dora")
    with pytest.raises(ModelError, match="DoRA") as error:
        write_gguf_adapter(tmp_path / "x.gguf", open_export_source(run), silent(""))
    assert "--format gguf" in error.value.fix


def test_llamas_rotary_scaling_is_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 512}  # fmt: skip
    config = tiny_model("llama", head_dim=64, rope_parameters=rope, max_position_embeddings=4096).config
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = rope_factors(config)["rope_freqs.weight"]
    assert torch.allclose(plain / factors, frequencies, rtol=1e-5)
    assert rope_factors(tiny_model("llama").config) == {}


def test_other_rotary_scalings_are_said_or_refused() -> None:
    config = tiny_model("llama").config
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    assert family_of(config).metadata()["llama.rope.scaling.factor"].value == 2.0
    config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0]}
    with pytest.raises(ModelError, match="rotary"):
        family_of(config)


@pytest.mark.parametrize("given", [{}, {"factor": 8.0}, {"attention_factor": 1.25}])
def test_longropes_attention_factor_is_transformers(given: dict[str, float]) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    shape = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
    rope = {**longrope(64), "factor": None, **given}
    config = family_config("phi3", **shape, rope_parameters=rope)
    _, expected = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
    assert long_attention_factor(config) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("family", "keys"),
    [("gemma2", {"final_logit_softcapping": None}), ("gemma2", {"attn_logit_softcapping": None}),
     ("deepseek_v3", {"rope_interleave": False})],
)  # fmt: skip
def test_what_llama_cpp_computes_in_one_way_is_refused_in_another(family: str, keys: dict[str, Any]) -> None:
    family_of(family_config(family))
    with pytest.raises(ModelError, match=next(iter(keys))):
        family_of(family_config(family, **keys))


_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "rope", [_YARN, {**_YARN, "attention_factor": 1.5}, {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5}]
)
def test_yarns_attention_factor_is_transformers(rope: dict[str, Any]) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = tiny_model("qwen3", rope_parameters=rope).config
    _, expected = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    assert attention_factor(rope) == pytest.approx(expected)
    fields = family_of(config).metadata()
    key = "qwen3.rope.scaling.attn_factor"
    assert (key in fields) == (rope is not _YARN)
    if key in fields:
        assert fields[key].value == pytest.approx(expected / (0.1 * math.log(4) + 1))


@pytest.mark.parametrize(("more", "rounded"), [({}, False), ({"truncate": True}, False), ({"truncate": False}, True)])
def test_bounds_of_yarn_that_llama_cpp_rounds_are_known(more: dict[str, Any], rounded: bool) -> None:
    config = tiny_model("qwen3", rope_parameters={**_YARN, **more}).config
    assert rounds_yarn(config) is rounded
    assert family_of(config).metadata()["qwen3.rope.scaling.type"].value == "yarn"


def test_yarn_that_llama_cpp_computes_otherwise_is_refused() -> None:
    both = {"mscale": 1.0, "mscale_all_dim": 1.0}
    fields = family_of(family_config("deepseek_v3", rope_parameters={**_YARN, **both})).metadata()
    assert "deepseek2.rope.scaling.attn_factor" not in fields
    for other in ({}, {"mscale_all_dim": 1.0}, {**both, "attention_factor": 1.5}):
        with pytest.raises(ModelError, match="YaRN with attention factor 1"):
            family_of(family_config("deepseek_v3", rope_parameters={**_YARN, **other}))


def test_numbers_without_a_token_are_filled_in() -> None:
    tokenizer = tiny_tokenizer("qwen3")
    fields = vocabulary_metadata(tokenizer, 512, [3, 4], "template")
    tokens, types = fields["tokenizer.ggml.tokens"].value, fields["tokenizer.ggml.token_type"].value
    assert len(tokens) == len(types) == 512
    assert [types[tokenizer.convert_tokens_to_ids(token)] for token in ("<|im_end|>", "<think>", "a")] == [3, 4, 1]
    assert tokens[511] == "[unused511]"
    assert types[511] == 5
    assert fields["tokenizer.ggml.eos_token_id"].value == 3
    assert fields["tokenizer.ggml.eot_token_id"].value == 4


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}, "smollm"),
    ],
)  # fmt: skip
def test_the_way_to_split_text_is_recognised(pre_tokenizer: dict[str, Any], name: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = tiny_tokenizer("chatml")
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    core["pre_tokenizer"] = pre_tokenizer
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(core))
    assert vocabulary_metadata(tokenizer, 512, [1], "")["tokenizer.ggml.pre"].value == name


def test_an_unknown_way_to_split_text_is_refused() -> None:
    from tokenizers import pre_tokenizers

    tokenizer = tiny_tokenizer("chatml")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="does not know"):
        vocabulary_metadata(tokenizer, 512, [1], "")


def test_more_stop_tokens_than_gguf_can_name_are_refused() -> None:
    assert [key.split(".")[-1] for key in end_metadata([7, 8, 9])] == ["eos_token_id", "eot_token_id", "eom_token_id"]
    with pytest.raises(ModelError, match="any of 4 tokens"):
        end_metadata([6, 7, 8, 9])


def test_rows_that_do_not_divide_into_blocks_stay_f16(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2")
    model = tiny_model("qwen2", intermediate_size=80)
    model.save_pretrained(run.recipe.model)
    from tests.tiny import save_tiny_adapter

    save_tiny_adapter(run.path / "adapter", run.recipe.model)
    tensors = {tensor.name: tensor.tensor_type for tensor in write(run, tmp_path / "x.gguf", "Q8_0").tensors}
    assert tensors["blk.0.ffn_down.weight"] == GGMLQuantizationType.F16
    assert tensors["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q8_0


def test_a_head_of_its_own_is_written_whatever_the_configuration_says(tmp_path: Path) -> None:
    """That of Mistral Small 3.1 says that it is tied."""
    run = save_run(tmp_path / "run", "qwen2")
    config = Path(run.recipe.model) / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "tie_word_embeddings": True}), encoding="utf-8")
    exported = export(run, tmp_path / "out", ExportOptions("gguf", gguf_type="F32", prompts=2))
    assert exported.verdict is not None
    assert exported.verdict.passed
    [file] = (tmp_path / "out").glob("*.gguf")
    assert "output.weight" in read_header(file).tensors
    assert not open_export_source(run).head_is_tied
    tiny_model("qwen2", tie_word_embeddings=True).save_pretrained(run.recipe.model)
    assert open_export_source(run).head_is_tied
