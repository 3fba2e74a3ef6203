"""Model folders as they are published with quantized weights, made from any model that is saved dense.

The quantizers follow the formats' definitions and round to the nearest value. Each writes the names, shapes and
configuration of models on a hub: gpt-oss (MXFP4), DeepSeek-V3 and Qwen3 (FP8 in blocks), Ministral 3 (FP8 with one
scale), `fbgemm_fp8` and `compressed-tensors` (FP8 with a scale for each row).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from weitune.model.load.weight_files import CONFIG, SINGLE

MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
FP8_WHOLE = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    }},
}  # fmt: skip
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_FOUR_BITS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def quantize(folder: Path, settings: Mapping[str, Any], *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Quantize the model in ``folder`` as its new ``settings`` say; the rest becomes ``dtype``."""
    config = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / SINGLE)
    quantizer = _QUANTIZERS[settings["quant_method"]]
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        made = quantizer(name, tensor.float(), settings)
        written |= {key: each.contiguous() for key, each in made.items()} or {name: tensor.to(dtype)}
    save_file(written, folder / SINGLE, metadata={"format": "pt"})
    config.pop("torch_dtype", None)
    config |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": dict(settings)}
    (folder / CONFIG).write_text(json.dumps(config))


def mxfp4_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``weight`` (…, N, 32 G) as blocks (…, N, G, 16) of pairs and their exponents (…, N, G)."""
    groups = weight.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1).clamp_min(2.0**-126)
    exponents = (largest.log2().floor() - 2).clamp(-127, 127)  # the largest of the eight values is 6 = 1.5 · 2^2
    scaled = groups / exponents.exp2()[..., None]
    codes = torch.bucketize(scaled.abs().contiguous(), (_FOUR_BITS[1:] + _FOUR_BITS[:-1]) / 2) + 8 * (scaled < 0)
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    return blocks, (exponents + 127).to(torch.uint8)


def fp8_blocks(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return ``weight`` (R, C) in 8-bit floats, and a scale for each block; those at the end may be cut off."""
    rows, columns = weight.shape
    (high, wide), (below, right) = block, (-rows % block[0], -columns % block[1])
    tiles = pad(weight, (0, right, 0, below)).unflatten(0, (-1, high)).unflatten(2, (-1, wide))
    scales = tiles.abs().amax((1, 3)).clamp_min(1e-12) / _LARGEST
    values = (tiles / scales[:, None, :, None]).flatten(2).flatten(0, 1)[:rows, :columns]
    return values.to(torch.float8_e4m3fn), scales


def _linear(name: str, tensor: Tensor) -> bool:
    return tensor.dim() == 2 and name.endswith("_proj.weight")


def _mxfp4(name: str, tensor: Tensor, _: Mapping[str, Any]) -> dict[str, Tensor]:
    if tensor.dim() != 3:
        return {}
    blocks, scales = mxfp4_blocks(tensor.transpose(1, 2))
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}


def _fp8(name: str, tensor: Tensor, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    if not _linear(name, tensor):
        return {}
    if block := settings["weight_block_size"]:
        values, scales = fp8_blocks(tensor, tuple(block))
        return {name: values, f"{name}_scale_inv": scales}
    scale = tensor.abs().max() / _LARGEST
    stored = {name: (tensor / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.bfloat16()}
    return stored | {name.replace("weight", "activation_scale"): torch.tensor(0.5).bfloat16()}


def _rows(name: str, tensor: Tensor, _: Mapping[str, Any]) -> dict[str, Tensor]:
    if not _linear(name, tensor):
        return {}
    values, scales = fp8_blocks(tensor, (1, tensor.shape[1]))
    return {name: values, f"{name}_scale": scales}


_QUANTIZERS: Mapping[str, Callable[[str, Tensor, Mapping[str, Any]], dict[str, Tensor]]] = {
    "mxfp4": _mxfp4, "fp8": _fp8, "fbgemm_fp8": _rows, "compressed-tensors": _rows,
}  # fmt: skip
