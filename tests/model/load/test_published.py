"""Models that were published quantized: the values they are loaded with, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests import published as kinds
from tests.families import save_family
from tests.published import quantize
from weitune.errors import ModelError
from weitune.export.source.base_weights import open_weights
from weitune.forecast.memory_watch import weight_numbers
from weitune.model.load.dequantize import Float8, Mxfp4
from weitune.model.load.locate import locate
from weitune.model.load.published import dense_tensors, quantization_of, without_quantization
from weitune.model.load.weight_files import CONFIG, SINGLE, StoredWeight
from weitune.model.load.weights import load_model
from weitune.model.storage.weight_storage import is_quantized

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WIDE = {"hidden_size": 128, "intermediate_size": 384, "head_dim": 64}
ODD = {"hidden_size": 160, "intermediate_size": 208, "head_dim": 40}
"""Sizes that are no multiples of 128, and larger."""


def published(folder: Path, family: str, settings: dict[str, Any], **overrides: Any) -> Path:
    save_family(folder, family, **overrides)
    quantize(folder, settings)
    return folder


def loaded(folder: Path, precision: str = "fp32", storage: Any = "auto") -> Any:
    return load_model(str(folder), precision=precision, storage=storage, device="cpu").model


def by_transformers(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

    kind = Mxfp4Config if settings["quant_method"] == "mxfp4" else FineGrainedFP8Config
    options = {"quantization_config": kind(dequantize=True), "dtype": dtype, "device_map": {"": "cpu"}}
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def reference(weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The definition: every number times the scale of its block."""
    rows, columns = weight.shape
    return weight.float() * scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(
    ("family", "settings", "sizes"),
    [
        ("gpt_oss", kinds.MXFP4, {}),
        ("qwen3", kinds.FP8, WIDE),
        ("qwen3", kinds.FP8_WHOLE, ODD),
        ("qwen3_moe", kinds.FP8, {}),
        ("deepseek_v3", kinds.FP8, {}),
    ],
)
def test_the_values_are_those_of_transformers(
    tmp_path: Path, family: str, settings: dict[str, Any], sizes: dict[str, int], precision: str
) -> None:
    folder = published(tmp_path, family, settings, **sizes)
    ours = loaded(folder, precision)
    theirs = by_transformers(folder, settings, DTYPES[precision])
    wanted = theirs.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == (DTYPES[precision] if tensor.dim() > 1 else tensor.dtype), name
        assert torch.equal(tensor, wanted[name].to(tensor.dtype)), name  # FP8 leaves some in bfloat16, as stored
    assert not hasattr(ours.config, "quantization_config")
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id
    assert ours.name_or_path == str(folder)


def test_blocks_that_are_cut_off_keep_their_size(tmp_path: Path) -> None:
    """transformers derives the size of a block from the number of scales: 160 rows with two would be blocks of 80."""
    folder = published(tmp_path, "qwen3", kinds.FP8, **ODD)
    stored = load_file(folder / SINGLE)
    found = loaded(folder).state_dict()
    cut = 0
    for name, scales in ((name, stored.get(f"{name}_scale_inv")) for name in stored):
        if scales is not None:
            assert torch.equal(found[name], reference(stored[name], scales, (128, 128))), name
            cut += any(size % 128 for size in stored[name].shape)
    assert cut == 14


@pytest.mark.parametrize("settings", [kinds.FBGEMM, kinds.COMPRESSED], ids=["fbgemm", "compressed-tensors"])
def test_a_scale_for_each_row(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = published(tmp_path, "qwen3", settings, **ODD)
    stored = load_file(folder / SINGLE)
    names = [name for name in stored if f"{name}_scale" in stored]
    found = loaded(folder).state_dict()
    assert len(names) == 14
    assert all(torch.equal(found[name], stored[name].float() * stored[f"{name}_scale"]) for name in names)


def test_compressed_tensors_in_blocks(tmp_path: Path) -> None:
    settings = json.loads(json.dumps(kinds.COMPRESSED))
    settings["config_groups"]["group_0"]["weights"] |= {"strategy": "block", "block_structure": [32, 64]}
    save_family(tmp_path, "qwen3", **ODD)
    quantize(tmp_path, {**kinds.FP8, "weight_block_size": [32, 64]})
    stored = load_file(tmp_path / SINGLE)
    save_file({name.removesuffix("_inv"): each for name, each in stored.items()}, tmp_path / SINGLE)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "quantization_config": settings}))
    name = "model.layers.1.mlp.down_proj.weight"
    wanted = reference(stored[name], stored[f"{name}_scale_inv"], (32, 64))
    assert torch.equal(dense_tensors(tmp_path)[name].read(torch.float32), wanted)


def stored_as(folder: Path, **tensors: torch.Tensor) -> dict[str, StoredWeight]:
    from weitune.model.load.weight_files import read_safetensors_header

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE)
    return read_safetensors_header(folder / SINGLE)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((3, 5, 7), (3, 1, 7)),
        ((3, 5, 7), (3,)),
        ((3, 5, 7), (3, 5, 1)),
        ((3, 5, 7), ()),
        ((5, 7), (5,)),
        ((5, 7), (1, 7)),
    ],
)
def test_scales_of_a_tensor_are_broadcast(tmp_path: Path, shape: tuple[int, ...], scales: tuple[int, ...]) -> None:
    values = torch.randn(shape).to(torch.float8_e4m3fn)
    factors = torch.rand(scales) + 0.5
    stored = stored_as(tmp_path, w=values, s=factors)
    tensor = Float8(tmp_path, stored["w"], stored["s"], None, torch.bfloat16)
    spread = factors.view(*scales, *([1] * (len(shape) - len(scales)))) if scales else factors
    assert tensor.fits
    assert torch.equal(tensor.read(torch.float32), values.float() * spread)


@pytest.mark.parametrize("scales", [(2, 3), (3, 2), (6, 2), (4,), (1, 1, 2)])
def test_scales_that_do_not_fit_are_noticed(tmp_path: Path, scales: tuple[int, ...]) -> None:
    stored = stored_as(tmp_path, w=torch.zeros(5, 7).to(torch.float8_e4m3fn), s=torch.ones(scales))
    assert not Float8(tmp_path, stored["w"], stored["s"], (4, 4), torch.bfloat16).fits


def test_every_four_bit_number_with_every_exponent(tmp_path: Path) -> None:
    """All 256 bytes and all exponents from 2^-127 to 2^125, beyond which 6 is no float any more."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 253, 1, 1)
    exponents = torch.arange(253, dtype=torch.uint8).view(1, 253, 1).repeat(1, 1, 16)
    stored = stored_as(tmp_path, b=blocks, s=exponents)
    for dtype in DTYPES.values():
        found = Mxfp4(tmp_path, stored["b"], stored["s"], torch.bfloat16).read(dtype)
        assert torch.equal(found, convert_moe_packed_tensors(blocks, exponents, dtype=dtype))


def test_a_tensor_of_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "fp8", "qwen3", kinds.FP8, **ODD)
    experts = published(tmp_path / "mxfp4", "gpt_oss", kinds.MXFP4)
    for each in (folder, experts):
        whole = {name: tensor.read() for name, tensor in dense_tensors(each).items()}
        monkeypatch.setattr("weitune.model.load.dequantize._PIECE", 1000)
        assert all(torch.equal(tensor.read(), whole[name]) for name, tensor in dense_tensors(each).items())
        monkeypatch.undo()


@pytest.mark.parametrize("settings", [kinds.FP8, kinds.MXFP4], ids=["fp8", "mxfp4"])
def test_every_reader_gives_the_same_values(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = published(tmp_path, "gpt_oss" if settings is kinds.MXFP4 else "qwen3", settings)
    model = loaded(folder, "bf16").state_dict()
    exported = open_weights(locate(str(folder)))
    assert set(model) - {"lm_head.weight"} <= exported.slots.keys() <= model.keys()
    for name, slot in exported.slots.items():
        assert torch.equal(exported.read(name), model[name])
        assert (slot.shape, slot.dtype) == (tuple(model[name].shape), torch.bfloat16)


@pytest.mark.parametrize("storage", ["int8", "nf4"])
@pytest.mark.parametrize(("family", "settings"), [("qwen3", kinds.FP8), ("gpt_oss", kinds.MXFP4)])
def test_weights_are_rounded_again_as_those_of_a_dense_model_are(
    tmp_path: Path, family: str, settings: dict[str, Any], storage: str
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = published(tmp_path / "published", family, settings)
    loaded(folder, "bf16").save_pretrained(tmp_path / "dense")
    for file in folder.glob("tokenizer*"):
        (tmp_path / "dense" / file.name).write_bytes(file.read_bytes())
    ours, dense = loaded(folder, "bf16", storage).state_dict(), loaded(tmp_path / "dense", "bf16", storage).state_dict()
    assert ours.keys() == dense.keys()
    assert all(torch.equal(ours[name], dense[name]) for name in dense if isinstance(dense[name], torch.Tensor))
    assert any(tensor.dtype in {torch.int8, torch.uint8} for tensor in ours.values())


REFUSED = [
    ({"quant_method": "awq", "bits": 4}, "AWQ"),
    ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
    ({"quant_method": "hqq"}, "HQQ"),
    ({"quant_method": "aqlm"}, "AQLM"),
    ({"quant_method": "exl2"}, "EXL2"),
    ({"quant_method": "gguf"}, "GGUF"),
    ({"quant_method": "never_seen"}, "never_seen"),
    ({"quant_method": "fp8", "expert_dtype": "fp4"}, "fp8"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized",
      "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}}},
     "compressed-tensors (pack-quantized)"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "name"), REFUSED, ids=[name for _, name in REFUSED])
def test_other_methods_are_refused(tmp_path: Path, settings: dict[str, Any], name: str) -> None:
    folder = save_family(tmp_path / "Tiny-1B-Instruct-AWQ", "qwen3")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "quantization_config": settings}))
    for read in (lambda: loaded(folder), lambda: open_weights(locate(str(folder)))):
        with pytest.raises(ModelError) as refused:
            read()
        text = str(refused.value)
        assert name in text
        assert "train.storage: nf4" in text
        assert "by its name Tiny-1B-Instruct:" in text
        assert ("vLLM" in text) == (name in {"AWQ", "GPTQ"})


def test_layers_of_bitsandbytes_are_loaded_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dense = save_family(tmp_path / "dense", "qwen3")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=settings, device_map={"": "cpu"})
    folder = tmp_path / "Tiny-bnb-4bit"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(dense).save_pretrained(folder)
    assert quantization_of(folder) is None
    layers = dict(loaded(folder, "fp32").named_modules())
    kept = layers["model.layers.0.mlp.up_proj"]
    assert is_quantized(kept)
    assert torch.equal(kept.weight, model.model.layers[0].mlp.up_proj.weight)
    assert weight_numbers(locate(str(folder))) < weight_numbers(locate(str(dense)))
    with pytest.raises(ModelError, match="no dense ones"):
        open_weights(locate(str(folder)))


def test_wrapped_layers_of_bitsandbytes_are_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "Tiny-bnb-4bit", "gemma3")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(ModelError, match="bitsandbytes"):
        loaded(folder)


def test_a_wrapper_may_say_it_in_the_part_about_text() -> None:
    outside = {"model_type": "mistral3", "text_config": {"hidden_size": 8, "quantization_config": kinds.FP8}}
    assert without_quantization(outside) == {"model_type": "mistral3", "text_config": {"hidden_size": 8}}


def test_missing_scales_are_refused(tmp_path: Path) -> None:
    folder = published(tmp_path, "qwen3", kinds.FP8)
    stored = load_file(folder / SINGLE)
    del stored["model.layers.0.mlp.down_proj.weight_scale_inv"]
    save_file(stored, folder / SINGLE)
    with pytest.raises(ModelError, match=r"1 tensors whose scales .*: model\.layers\.0\.mlp\.down_proj\.weight"):
        loaded(folder)
    with pytest.raises(ModelError, match="scales"):
        dense_tensors(folder)


def test_a_parameter_whose_name_ends_like_one_of_scales_is_a_parameter(tmp_path: Path) -> None:
    """As the routers of Gemma 4 have."""
    folder = published(tmp_path, "qwen3", kinds.FP8)
    own = {"model.layers.0.router.per_expert_scale": torch.ones(4)}
    save_file({**load_file(folder / SINGLE), **own}, folder / SINGLE)
    assert dense_tensors(folder).keys() >= own.keys()


def test_a_dense_model_has_no_quantization(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "qwen3")
    assert quantization_of(folder) is None
    stored = load_file(folder / SINGLE)
    assert all(torch.equal(tensor.read(), stored[name]) for name, tensor in dense_tensors(folder).items())


_PEAK = """
import re, sys
from pathlib import Path
from weitune.model.load.weights import load_model
from weitune.model.storage.weight_storage import is_quantized
status = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
load = lambda folder: load_model(folder, precision=sys.argv[3], device="cpu").model
load(sys.argv[2])  # what a first load imports
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
model = load(sys.argv[1])
sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
print(status("VmHWM") - before, sum(sizes), max(sizes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux")
@pytest.mark.parametrize(
    ("family", "settings", "sizes", "precision"),
    [
        ("gpt_oss", kinds.MXFP4, {"num_local_experts": 8, "intermediate_size": 1024}, "fp32"),
        ("qwen3_moe", kinds.FP8, {"num_experts": 16, "moe_intermediate_size": 1024, "mlp_only_layers": []}, "bf16"),
    ],
)
def test_loading_takes_the_memory_of_the_weights_and_one_tensor(
    tmp_path: Path, family: str, settings: dict[str, Any], sizes: dict[str, Any], precision: str
) -> None:
    large = published(tmp_path / "large", family, settings, **sizes, hidden_size=1024)
    small = published(tmp_path / "small", family, settings)
    command = [sys.executable, "-c", _PEAK, str(large), str(small), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rise, weights, largest = map(int, done.stdout.split())
    assert weights > 140 << 20
    assert rise < weights + largest + (32 << 20), (rise, weights, largest)


def test_loftq_measures_the_error_against_the_dequantized_weights(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from weitune.model.lora.adapter import attach_adapter
    from weitune.model.lora.adapter_init import start_loftq
    from weitune.model.storage.weight_storage import dense
    from weitune.recipe.schema import Lora

    folder = published(tmp_path, "qwen3", kinds.FP8)
    wanted = dense_tensors(folder)["model.layers.0.mlp.down_proj.weight"].read(torch.float32)
    adapted = attach_adapter(loaded(folder, "fp32", "nf4"), Lora(init="loftq", r=16), seed=0, base=str(folder))
    start_loftq(adapted, locate(str(folder)))
    layer = adapted.get_base_model().model.layers[0].mlp.down_proj
    update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    rounded = dense(layer.base_layer, torch.float32)
    assert (wanted - rounded - update).norm() < 0.9 * (wanted - rounded).norm()
