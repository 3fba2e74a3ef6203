"""How a frozen weight lies in memory, and the matrix that it is.

    nn.Linear             fp32, or bf16 with arithmetic in float32        2 or 4 bytes a number
    bitsandbytes 8 bits   one scale a row                                 1 byte
    bitsandbytes 4 bits   NF4 (Dettmers et al., arXiv 2305.14314): a      0.52 bytes
                          scale for 64 numbers, itself in 8 bits

A layer's matrix is made when it is used and forgotten after: one is in memory at a time.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch
from torch import Tensor, nn

from weitune.errors import MissingExtraError
from weitune.recipe.schema import Storage


def quantization(storage: Storage, dtype: torch.dtype) -> Any:
    """Return transformers' configuration for ``storage`` int8 or nf4, computed in ``dtype``.

    Raises MissingExtraError if bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quantized")
    from transformers import BitsAndBytesConfig

    if storage == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def widen(model: nn.Module, dtype: torch.dtype) -> None:
    """Store all frozen weights of ``model`` that are not quantized in ``dtype``."""
    for module in model.modules():
        if not is_quantized(module):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)


def is_quantized(layer: Any) -> bool:
    """Return whether ``layer`` is a linear layer of bitsandbytes."""
    bnb = sys.modules.get("bitsandbytes")  # nothing can be of its classes before it is imported
    return bnb is not None and isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)


def is_linear(layer: Any) -> bool:
    """Return whether ``layer`` is a linear layer whose matrix :func:`dense` gives."""
    return type(layer) is nn.Linear or is_quantized(layer)


def dense(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return the weight (N, K) of a linear layer in ``dtype``; the weight itself if it lies in memory like that."""
    weight = layer.weight
    if type(layer) is nn.Linear:
        plain: Tensor = weight.to(dtype)
        return plain
    bnb = sys.modules["bitsandbytes"]
    if isinstance(layer, bnb.nn.Linear4bit):
        found: Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        return found.to(dtype)
    scales = layer.state.SCB if getattr(weight, "SCB", None) is None else weight.SCB  # the first forward moves them
    rounded: Tensor = bnb.functional.int8_vectorwise_dequant(weight.data, scales)
    return rounded.to(dtype)
