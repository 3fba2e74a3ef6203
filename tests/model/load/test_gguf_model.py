"""Models out of ``.gguf`` files: what transformers makes of a file is the reference, to the bit."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

import gguf
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFReader, get_tensor_name_map
from tests.tiny import TEMPLATE_OF, tiny_model, tiny_tokenizer
from weitune.errors import ModelError
from weitune.gguf.families.find import family_of
from weitune.gguf.header import read_header
from weitune.gguf.metadata import Field, array, number, real, text
from weitune.gguf.vocabulary import vocabulary_metadata
from weitune.gguf.writer import TensorPlan, write_gguf_file
from weitune.model.load.config import read_config
from weitune.model.load.gguf_model import known
from weitune.model.load.locate import ModelFiles, locate
from weitune.model.load.tokenizer import load_tokenizer
from weitune.model.load.weights import LoadedModel, load_model

HARD = [
    "Hello world!  Two  spaces, 1234567 and\ttabs\r\n\n\n",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|endoftext|>",
    "你是谁？我是皇帝身边的女人。 e\u0301 ﬁ 😀👩‍👩‍👧",
    "don't I'LL x_1+=2; // ünïcödé <think>a</think> <|im_st",
    " leading, trailing ",
    "",
]
TYPES = {
    "llama": GGMLQuantizationType.Q4_1,
    "qwen2": GGMLQuantizationType.Q8_0,
    "qwen3": GGMLQuantizationType.BF16,
    "starcoder2": GGMLQuantizationType.F16,
}


@pytest.fixture(autouse=True)
def converted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test convert its tokenizers: the cache is the subject of test_gguf_tokenizer.py."""
    monkeypatch.setattr("weitune.model.load.gguf_tokenizer.tokenizer_cache", lambda: tmp_path / "tokenizers")


def write_tiny(
    path: Path,
    family: str,
    *,
    without: str = "",
    also: Mapping[str, Field] | None = None,
    more: Mapping[str, torch.Tensor] | None = None,
    **shape: Any,
) -> Path:
    """Write a tiny model of a family that weitune knows; its weights are drawn anew for every file."""
    model, tokenizer = tiny_model(family, **shape), tiny_tokenizer(TEMPLATE_OF[family])
    config = model.config
    written = family_of(config)
    metadata = {
        "general.name": text(f"Tiny {family}"),
        **written.metadata(),
        **vocabulary_metadata(tokenizer, config.vocab_size, [tokenizer.eos_token_id], tokenizer.chat_template),
        **(also or {}),
    }
    tensors = dict(written.computed)
    for name, tensor in model.state_dict().items():
        if not (name == "lm_head.weight" and config.tie_word_embeddings):
            tensors.update((part.name, part.of(tensor)) for part in written.parts(name) or ())
    tensors.pop(without, None)
    tensors.update(more or {})
    write_tensors(path, written.name, metadata, tensors, TYPES[family])
    return path


def write_foreign(path: Path, *, without: str = "", also: Mapping[str, Field] | None = None) -> Path:
    """Write a tiny model of a family that transformers maps and weitune does not."""
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    tokenizer = tiny_tokenizer("chatml")
    config = Starcoder2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    names = get_tensor_name_map(MODEL_ARCH.STARCODER2, 2)
    tensors = {}
    for name, tensor in Starcoder2ForCausalLM(config).state_dict().items():
        module, _, kind = name.rpartition(".")
        if name != "lm_head.weight":
            tensors[f"{names.get_name(module)}.{kind}"] = tensor
    metadata = {
        "general.name": text("Tiny foreigner"),
        "starcoder2.context_length": number(64),
        "starcoder2.embedding_length": number(32),
        "starcoder2.feed_forward_length": number(64),
        "starcoder2.block_count": number(2),
        "starcoder2.attention.head_count": number(4),
        "starcoder2.attention.head_count_kv": number(2),
        "starcoder2.attention.layer_norm_epsilon": real(1e-5),
        **vocabulary_metadata(tokenizer, len(tokenizer), [tokenizer.eos_token_id], tokenizer.chat_template),
        **(also or {}),
    }
    tensors.pop(without, None)
    write_tensors(path, "starcoder2", metadata, tensors, TYPES["starcoder2"])
    return path


def write_tensors(
    path: Path, architecture: str, metadata: Mapping[str, Field], tensors: Mapping[str, torch.Tensor], stored: Any
) -> None:
    def plan(name: str, tensor: torch.Tensor) -> TensorPlan:
        kind = stored if tensor.dim() == 2 else GGMLQuantizationType.F32
        return TensorPlan(name, tuple(tensor.shape), kind, lambda: [quantize(tensor.float().numpy(), kind)])

    plans = [plan(name, tensor) for name, tensor in tensors.items()]
    write_gguf_file(path, architecture, metadata, plans, lambda done, total: None)


def reference(files: ModelFiles, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return the configuration and the model that transformers makes of a file."""
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    where: Any = {"gguf_file": files.gguf, "local_files_only": True}
    config = AutoConfig.from_pretrained(files.folder, **where)
    model = AutoModelForCausalLM.from_pretrained(
        files.folder, config=config, dtype=dtype, quantization_config=GgufConfig(dequantize=True), **where
    )
    assert not hasattr(model.config, "quantization_config")
    return config, model


def assert_equals_reference(loaded: LoadedModel, expected: tuple[Any, Any]) -> None:
    config, model = expected
    assert read_config(loaded.files).to_dict() == config.to_dict()
    ours = loaded.model
    assert type(ours) is type(model)
    assert ours.config.to_dict() == model.config.to_dict()
    assert ours.generation_config.to_dict() == model.generation_config.to_dict()
    assert (ours.name_or_path, ours.config.name_or_path) == (model.name_or_path, model.config.name_or_path)
    state, wanted = ours.state_dict(), model.state_dict()
    assert state.keys() == wanted.keys()
    assert [name for name in wanted if state[name].dtype != wanted[name].dtype] == []
    assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []
    for (name, buffer), (other, same) in zip(ours.named_buffers(), model.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(buffer, same)
    assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == config.tie_word_embeddings
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def assert_same_tokenizer(ours: Any, expected: Any) -> None:
    assert ours.special_tokens_map == expected.special_tokens_map
    assert ours.chat_template == expected.chat_template
    assert ours.chat_template
    for string in HARD:
        assert ours(string)["input_ids"] == expected(string)["input_ids"], string
        assert ours.decode(ours(string)["input_ids"]) == expected.decode(expected(string)["input_ids"])


@pytest.mark.slow
def test_smollm2_is_what_transformers_makes_of_it(smollm2: str) -> None:
    """Of its thirty blocks, all alike, three: transformers takes long to find the names of many."""
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    loaded = load_model(smollm2, precision="fp32", device="cpu")
    folder, where = loaded.files.folder, {"gguf_file": loaded.files.gguf, "local_files_only": True}
    assert known(read_header(loaded.files.path))
    config = AutoConfig.from_pretrained(folder, **where)
    assert read_config(loaded.files).to_dict() == config.to_dict()
    digits = loaded.tokenizer("1234", add_special_tokens=False)["input_ids"]
    assert [loaded.tokenizer.decode([digit]) for digit in digits] == ["1", "2", "3", "4"]
    config.num_hidden_layers = 3
    expected = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
    ).state_dict()
    state = loaded.model.state_dict()
    assert len(expected) == 3 * 9 + 3
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"tie_word_embeddings": False, "head_dim": 128}),  # no other size for transformers' reader
    ],
)
def test_a_known_family_is_what_transformers_makes_of_it(
    family: str, shape: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", family, **shape)
    assert known(read_header(path))
    loaded = load_model(str(path), precision=precision, device="cpu")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    assert_equals_reference(loaded, reference(loaded.files, dtype))
    assert_same_tokenizer(loaded.tokenizer, tiny_tokenizer(TEMPLATE_OF[family]))


def test_a_family_that_only_transformers_knows_is_loaded_by_it(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "tiny.gguf")
    assert known(read_header(path)) is None
    loaded = load_model(str(path), precision="fp32", device="cpu")
    assert loaded.model.config.model_type == "starcoder2"
    assert_equals_reference(loaded, reference(loaded.files))


def test_what_differs_from_its_family_is_left_to_transformers(tmp_path: Path) -> None:
    heads = array([4, 2], read_header(write_tiny(tmp_path / "a.gguf", "qwen2")).metadata["qwen2.block_count"].type)
    for family, also in [
        ("llama", {"general.name": text("mistral")}),
        ("qwen2", {"qwen2.attention.head_count": heads}),
    ]:
        assert known(read_header(write_tiny(tmp_path / "b.gguf", family, also=also))) is None


def test_a_tokenizer_config_beside_the_file_is_heeded(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    ours = load_tokenizer(locate(str(path)))
    assert type(ours) is type(AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name))
    assert type(ours).__name__ == "GPT2Tokenizer"


_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("llama", _LLAMA3), ("llama", {**_LLAMA3, "factor": 32.0}), ("qwen2", _YARN),
        ("qwen3", {**_YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5}),
        ("qwen3", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    ],
)  # fmt: skip
def test_rotary_positions_are_scaled_as_in_the_model_that_was_written(
    family: str, rope: dict[str, Any], tmp_path: Path
) -> None:
    heads = {} if family == "qwen2" else {"head_dim": 64}
    shape = {"rope_parameters": rope, "max_position_embeddings": 256, **heads}
    path = write_tiny(tmp_path / "tiny.gguf", family, **shape)
    expected = tiny_model(family, **shape).model.rotary_emb
    loaded = load_model(str(path), precision="fp32", device="cpu").model.model.rotary_emb
    assert torch.allclose(loaded.inv_freq, expected.inv_freq, rtol=1e-5)
    assert loaded.attention_scaling == pytest.approx(expected.attention_scaling)


@pytest.mark.parametrize(
    "also",
    [
        {"rope.scaling.type": text("longrope")},
        {"rope.scaling.type": text("yarn")},
        {"rope.scaling.type": text("yarn"), "rope.scaling.factor": real(4), "rope.scaling.yarn_ext_factor": real(0.5)},
        {"rope.scaling.factor": real(4), "rope.scaling.attn_factor": real(2)},
    ],
)
def test_a_scaling_that_transformers_does_not_compute_is_refused(also: dict[str, Field], tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "qwen2", also={f"qwen2.{key}": value for key, value in also.items()})
    with pytest.raises(ModelError, match=r"scales its rotary positions.*qwen2\.rope\.scaling"):
        load_model(str(path), precision="fp32", device="cpu")


def test_divisors_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = write_tiny(
        tmp_path / "tiny.gguf", "llama", more={"rope_freqs.weight": torch.tensor([1.0, 2, 1, 3, 4, 8, 1, 8])}
    )
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        load_model(str(path), precision="fp32", device="cpu")


def test_a_scaling_that_does_nothing_is_no_scaling(tmp_path: Path) -> None:
    also = {"llama.rope.scaling.type": text("none"), "llama.rope.scaling.factor": real(4)}
    path = write_tiny(tmp_path / "tiny.gguf", "llama", also=also, more={"rope_freqs.weight": torch.ones(8)})
    assert read_config(locate(str(path))).rope_parameters["rope_type"] == "default"


def test_a_scaling_that_transformers_does_not_read_is_refused(tmp_path: Path) -> None:
    also = {"starcoder2.rope.scaling.type": text("linear"), "starcoder2.rope.scaling.factor": real(4)}
    path = write_foreign(tmp_path / "tiny.gguf", also=also)
    with pytest.raises(ModelError, match=r"scales its rotary positions.*starcoder2\.rope\.scaling\.factor 4"):
        load_model(str(path), precision="fp32", device="cpu")


def test_heads_of_any_size(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "qwen3")
    assert load_model(str(path), precision="fp32", device="cpu").model.config.head_dim == 16


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama", without="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"lacks 1 weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(path), precision="fp32", device="cpu")


def test_a_weight_that_transformers_would_draw_at_random_is_named(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "tiny.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"lacks 1 weights.*model\.layers\.1\.mlp\.c_fc\.weight"):
        load_model(str(path), precision="fp32", device="cpu")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # not every number in random bytes is finite
@pytest.mark.parametrize(
    "kind", [kind for kind in GGMLQuantizationType if kind.name.startswith(("F16", "F32", "BF16", "Q", "IQ", "TQ"))]
)
def test_every_type_is_dequantized_as_gguf_does(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    """Random bytes; 3 x 171 x 512 values are more than a piece, and no whole number of them."""
    values, size = GGML_QUANT_SIZES[kind]
    shape = (3, 171, 512)
    content = np.random.default_rng(0).integers(0, 256, 3 * 171 * 512 // values * size, np.uint8)
    write_gguf_file(
        tmp_path / "x.gguf", "llama", {}, [TensorPlan("x", shape, kind, lambda: [content])], lambda done, total: None
    )
    [stored] = GGUFReader(tmp_path / "x.gguf").tensors
    tensor = read_header(tmp_path / "x.gguf").tensors["x"]
    assert (tensor.shape, tensor.type) == (shape, kind)
    try:
        expected = torch.from_numpy(dequantize(stored.data, kind).copy()).reshape(shape)
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            tensor.read()
        return
    assert torch.equal(tensor.read().view(torch.int32), expected.view(torch.int32))
    half = tensor.read(torch.bfloat16)
    assert torch.equal(half.view(torch.int16), expected.to(torch.bfloat16).view(torch.int16))


@pytest.mark.parametrize(
    ("key", "value"), [("general.alignment", 0), ("general.alignment", "x"), ("split.count", "many")]
)
def test_a_header_that_makes_no_sense_is_refused(key: str, value: object, tmp_path: Path) -> None:
    entry = text(value) if isinstance(value, str) else number(value)
    write_gguf_file(tmp_path / "x.gguf", "llama", {key: entry}, [], lambda done, total: None)
    with pytest.raises(ModelError, match="GGUF"):
        read_header(tmp_path / "x.gguf")


def test_a_header_of_strings_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + b"\xff" * 16)
    with pytest.raises(ModelError):
        read_header(tmp_path / "x.gguf")


def test_a_header_says_what_gguf_reads(tmp_path: Path) -> None:
    for family in ("llama", "qwen3"):
        path = write_tiny(tmp_path / "tiny.gguf", family)
        header, reader = read_header(path), GGUFReader(path)
        fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert list(header.metadata) == list(fields)
        for key, field in fields.items():
            entry = header.metadata[key]
            assert entry.value == field.contents(), key
            assert [entry.type, *([] if entry.element is None else [entry.element])] == field.types
        assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            stored = header.tensors[tensor.name]
            assert stored.shape == tuple(reversed(tensor.shape.tolist()))
            assert stored.content == memoryview(np.ascontiguousarray(tensor.data)).cast("B")


def test_a_broken_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "tiny.gguf", "qwen2").read_bytes()
    path = tmp_path / "broken.gguf"
    for end in [1, 3, 4, 20, 30, *range(100, len(whole) - 32, 9973)]:
        path.write_bytes(whole[:end])
        with pytest.raises(ModelError, match=r"broken\.gguf' is not a whole GGUF file"):
            load_model(str(path), device="cpu")
    for content in (b"", b"GGML" + whole[4:], whole[:4] + b"\x00\x00\x00\x03" + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is not a whole GGUF file"):
            read_config(locate(str(path)))


def test_a_part_of_a_divided_file_is_not_taken_for_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="is one of the 2 parts of a model") as refused:
        read_config(locate(str(path)))
    assert "llama-gguf-split --merge" in refused.value.fix


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_holds_the_model_once(tmp_path: Path) -> None:
    """62 MB of weights in float32, of which the file is a quarter, and no tensor more than that."""
    path = write_tiny(
        tmp_path / "wide.gguf", "qwen2", hidden_size=1024, intermediate_size=4096, num_hidden_layers=1, head_dim=64,
        num_attention_heads=16, tie_word_embeddings=True,
    )  # fmt: skip
    script = """
import re, sys
from pathlib import Path
import transformers.models.qwen2.modeling_qwen2
from weitune.model.load.tokenizer import load_tokenizer
from weitune.model.load.weights import load_weights
from weitune.model.load.locate import locate
status = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
files = locate(sys.argv[1])
tokenizer = load_tokenizer(files)
load_weights(locate(sys.argv[2]), tokenizer, precision="fp32", device="cpu")  # what a first load imports
before = status("VmRSS")
model = load_weights(files, tokenizer, precision="fp32", device="cpu").model
print(status("VmHWM") - before, sum(p.numel() * 4 for p in model.parameters()))
"""
    small = write_tiny(tmp_path / "small.gguf", "qwen2")
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(small)], capture_output=True, text=True, check=True
    )
    rise, weights = map(int, done.stdout.split())
    assert weights > 50 << 20
    assert rise < 1.25 * weights + path.stat().st_size + (8 << 20), (rise, weights)
