"""Models that were published quantized: which of them weitune reads, and their dense weights.

    MXFP4                                   gpt-oss
    FP8 in blocks, or with a single scale   DeepSeek-V3, Qwen3-…-FP8, Ministral 3; `quant_method: fp8`
    FP8 with a scale for each row           `fbgemm_fp8`, and `compressed-tensors` with 8-bit floats

These are dequantized while they are read (:mod:`.dequantize`); the files stay as they are. Layers that bitsandbytes
quantized are loaded as they are, as ``train.storage: nf4`` or ``int8`` would make them. Every other method (AWQ, GPTQ,
…) is refused: most round to 4 bits, by rules that only their own kernels know, and the model that they were applied to
can be had.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weitune.errors import ModelError
from weitune.messages import say
from weitune.model.load.dequantize import DTYPES, DenseTensor, Float8, Mxfp4, Plain
from weitune.model.load.weight_files import CONFIG, StoredWeight, counted, read_model_json, stored_weights

if TYPE_CHECKING:
    from weitune.model.load.locate import ModelFiles

_KEYS = ("quantization_config", "compression_config")
_PARTS = ("text_config", "llm_config")
"""Parts of a configuration that describe a wrapped text model."""
_SCALES = ("_scale_inv", "_scale")
"""What follows a tensor's name in the name of its scales."""
_ACTIVATIONS = ("activation_scale", "input_scale", "input_scale_ub", "q_scale", "k_scale", "v_scale")
"""Scales of activations, which are not quantized here."""
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_BITS = 8
_QUANTIZED_NAME = re.compile(
    r"(-unsloth)?[-_.](awq|gptq|bnb|hqq|aqlm|exl[23]|eetq|quanto|w[48]a\d+|nvfp4|int[48]|[2348]-?bit)\b.*",
    re.IGNORECASE,
)
"""The end of a name that says how a model was quantized."""
_WRITTEN = {"awq": "AWQ", "gptq": "GPTQ", "hqq": "HQQ", "aqlm": "AQLM", "exl2": "EXL2", "exl3": "EXL3", "gguf": "GGUF"}
_SERVED_WITH_ADAPTERS = ("awq", "gptq", "bitsandbytes")
"""Methods on whose models vLLM can load an adapter."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of a folder are stored, as far as reading them needs it."""

    name: str
    """For people: ``MXFP4`` or ``FP8``."""
    block: tuple[int, int] | None
    """Rows and columns of an FP8 matrix that share a scale, if the configuration says so."""
    dtype: torch.dtype
    """The number format of the model's computations."""


def quantization_of(folder: Path) -> Quantization | None:
    """Return how the weights in ``folder`` were quantized; None if they are dense, or quantized by bitsandbytes.

    Raises ModelError if weitune cannot dequantize them.
    """
    config = read_model_json(folder / CONFIG)
    settings = _settings(config)
    if settings is None:
        return None
    method = _method(settings)
    dtype = getattr(torch, str(_of(config, "dtype") or _of(config, "torch_dtype")), torch.bfloat16)
    match method:
        case "mxfp4":
            return Quantization("MXFP4", None, dtype)
        case "fp8" if settings.get("expert_dtype", "fp8") == "fp8":
            return Quantization("FP8", _pair(settings.get("weight_block_size", (128, 128))), dtype)
        case "fbgemm_fp8":
            return Quantization("FP8", None, dtype)
        case "compressed-tensors" if _only_float8(settings):
            return Quantization("FP8", _blocks(settings), dtype)
        case "bitsandbytes" if not _wraps(config):
            return None
    raise _refusal(folder, method, settings)


def keeps_bitsandbytes(folder: Path) -> bool:
    """Return whether the weights in ``folder`` were quantized by bitsandbytes, and stay so."""
    config = read_model_json(folder / CONFIG)
    settings = _settings(config)
    return settings is not None and _method(settings) == "bitsandbytes" and not _wraps(config)


def is_dequantized(folder: Path) -> bool:
    """Return whether the weights in ``folder`` were published quantized, and are dequantized while they are read."""
    try:
        return quantization_of(folder) is not None
    except ModelError:
        return False


def check_published(files: ModelFiles) -> None:
    """Raise ModelError if the weights of a model are quantized in a way that weitune cannot dequantize.

    This needs only the configuration, so that a model can be refused before its weights are downloaded.
    """
    if not files.gguf:
        quantization_of(files.folder)


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config.json`` says of a model whose weights have been dequantized."""
    kept = {name: value for name, value in config.items() if name not in _KEYS}
    parts = {name: without_quantization(kept[name]) for name in _PARTS if isinstance(kept.get(name), dict)}
    return kept | parts


def dense_tensors(folder: Path) -> dict[str, DenseTensor]:
    """Return every tensor of the model in ``folder``, by its name in a model that is not quantized.

    They are read one at a time. Scales have no entries of their own. Raises ModelError if the files are incomplete, or
    quantized in a way that weitune cannot dequantize.
    """
    quantization, stored = quantization_of(folder), stored_weights(folder)
    if keeps_bitsandbytes(folder):
        raise ModelError("model.published.no_dense_weights", folder=folder)
    if unknown := [f"{name} ({weight.dtype})" for name, weight in stored.items() if weight.dtype not in DTYPES]:
        raise ModelError("model.published.unknown_number_format", folder=folder, **counted(unknown))
    if quantization is None:
        return {name: Plain(folder, weight) for name, weight in stored.items()}
    tensors = dict(_dequantized(folder, stored, quantization))
    broken = [name for name, tensor in tensors.items() if not getattr(tensor, "fits", True)]
    plain = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Plain)}
    broken += [name for name, tensor in plain.items() if _lacks_partner(name, tensor, stored)]
    if broken:
        raise ModelError("model.published.scales_do_not_fit", folder=folder, kind=quantization.name, **counted(broken))
    return tensors


def _dequantized(
    folder: Path, stored: Mapping[str, StoredWeight], quantization: Quantization
) -> Iterator[tuple[str, DenseTensor]]:
    scales = {name + end: name for name, weight in stored.items() if weight.dtype in _FLOAT8 for end in _SCALES}
    dtype = quantization.dtype
    for name, weight in stored.items():
        expert = name.removesuffix("_blocks")
        if expert != name and f"{expert}_scales" in stored:
            yield expert, Mxfp4(folder, weight, stored[f"{expert}_scales"], dtype)
        elif name in scales or name.rpartition(".")[2] in _ACTIVATIONS or _is_scales_of_blocks(name, stored):
            continue
        elif found := [stored[name + end] for end in _SCALES if name + end in stored and weight.dtype in _FLOAT8]:
            yield name, Float8(folder, weight, found[0], quantization.block, dtype)
        else:
            yield name, Plain(folder, weight)


def _is_scales_of_blocks(name: str, stored: Mapping[str, StoredWeight]) -> bool:
    return name.endswith("_scales") and name.removesuffix("_scales") + "_blocks" in stored


def _lacks_partner(name: str, tensor: Plain, stored: Mapping[str, StoredWeight]) -> bool:
    """Return whether ``tensor`` is a weight without its scales, or scales that do not fit their weight.

    Some models have parameters of their own whose names end with ``_scale``.
    """
    scaled = (name.removesuffix(end) for end in _SCALES if name.endswith(end))
    return (
        tensor.stored.dtype in _FLOAT8
        or name.endswith(("_blocks", "_scales"))
        or any(weight in stored for weight in scaled)
    )


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a configuration, or the part of it about text, says about quantization; None if it says nothing."""
    for part in (config, *(config[name] for name in _PARTS if isinstance(config.get(name), dict))):
        for key in _KEYS:
            if isinstance(part.get(key), dict):
                settings: Mapping[str, Any] = part[key]
                return settings
    return None


def _wraps(config: Mapping[str, Any]) -> bool:
    return any(isinstance(config.get(name), dict) for name in _PARTS)


def _of(config: Mapping[str, Any], key: str) -> Any:
    return config.get(key) or next(
        (config[name].get(key) for name in _PARTS if isinstance(config.get(name), dict)), None
    )


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"
    return str(method or "?").lower()


def _pair(size: Any) -> tuple[int, int] | None:
    return None if size is None else (int(size[0]), int(size[1]))


def _only_float8(settings: Mapping[str, Any]) -> bool:
    """Return whether all that compressed-tensors has quantized are weights, to 8-bit floats."""
    groups = [group.get("weights") or {} for group in (settings.get("config_groups") or {}).values()]
    dense = (settings.get("sparsity_config") or {}).get("format", "dense") == "dense"
    return dense and bool(groups) and all(w.get("type") == "float" and w.get("num_bits") == _BITS for w in groups)


def _blocks(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the blocks that compressed-tensors has made, if it has."""
    sizes = (group["weights"].get("block_structure") for group in settings["config_groups"].values())
    return _pair(next((size for size in sizes if size), None))


def _refusal(folder: Path, method: str, settings: Mapping[str, Any]) -> ModelError:
    kind = f"{method} ({settings.get('format', '?')})" if method == "compressed-tensors" else method
    name = folder.parent.parent.name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name
    original = _QUANTIZED_NAME.sub("", name)
    return ModelError(
        "model.published.refused",
        folder=folder,
        method=_WRITTEN.get(kind, kind),
        original="" if original == name else say("model.published.original", name=original),
        serving=say("model.published.serving") if method in _SERVED_WITH_ADAPTERS else "",
    )
