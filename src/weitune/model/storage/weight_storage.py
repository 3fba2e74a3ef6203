"""How a frozen weight is stored, and its dense matrix.

    nn.Linear             fp32, or bf16 with arithmetic in float32        2 or 4 bytes a number
    bitsandbytes 8 bits   one scale a row                                 1 byte
    bitsandbytes 4 bits   NF4 (Dettmers et al., arXiv 2305.14314): a      0.52 bytes
                          scale for 64 numbers, itself in 8 bits

The dense matrix of a layer, or the part that is needed, is made when it is used and freed afterwards.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch
from torch import Tensor, nn

from weitune.errors import MissingExtraError
from weitune.recipe.schema import QUANTIZED, Storage

ALL = slice(None)
STORED_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.516}
"""Of one number of a linear layer; nf4 with its block scales quantized again (QLoRA, arXiv 2305.14314: 4.127 bits)."""
_DENSE_BYTES = {"int8": 8, "nf4": 6}
"""Of one number while :func:`dense` makes a matrix in fp32: two results in fp32, or one in bf16 and one in fp32."""


def quantization(storage: Storage, dtype: torch.dtype) -> Any:
    """Return transformers' configuration for ``storage`` int8 or nf4, with arithmetic in ``dtype``.

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


def dense_bytes(storage: Storage, dtype: torch.dtype, *, plain_blocks: bool, dora: bool = False) -> int:
    """Return the bytes of one number, besides its storage, while its dense matrix in ``dtype`` exists.

    Without ``plain_blocks``, weights that are not quantized are widened once (:func:`widen`). With ``dora`` the blocks
    also multiply a matrix by a factor for each row, in float32.
    """
    rescaled = 0
    if dora and plain_blocks:
        rescaled = dtype.itemsize + (0 if dtype == torch.float32 else torch.float32.itemsize)
    if storage in QUANTIZED:
        return rescaled + (_DENSE_BYTES[storage] if dtype == torch.float32 or storage == "int8" else dtype.itemsize)
    narrow = storage != "auto" and STORED_BYTES[storage] < dtype.itemsize
    return (dtype.itemsize if narrow and plain_blocks else 0) + rescaled


def widen(model: nn.Module, dtype: torch.dtype) -> None:
    """Store all frozen weights of ``model`` that are not quantized in ``dtype``."""
    for module in model.modules():
        if not is_quantized(module):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)


def is_quantized(layer: Any) -> bool:
    """Return whether ``layer`` is a linear layer of bitsandbytes."""
    bnb = sys.modules.get("bitsandbytes")  # no layer can be of its classes before it is imported
    return bnb is not None and isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)


def is_linear(layer: Any) -> bool:
    """Return whether ``layer`` is a linear layer whose matrix :func:`dense` returns."""
    return type(layer) is nn.Linear or is_quantized(layer)


def dense(layer: Any, dtype: torch.dtype, rows: slice = ALL, columns: slice = ALL) -> Tensor:
    """Return ``rows`` and ``columns`` of the weight (N, K) of a linear layer in ``dtype``; a view where possible."""
    weight = layer.weight
    if type(layer) is nn.Linear:
        plain: Tensor = weight if rows == columns == ALL else weight[rows, columns]
        return plain.to(dtype)
    bnb = sys.modules["bitsandbytes"]
    if isinstance(layer, bnb.nn.Linear4bit):
        return _from_four_bits(bnb, weight, rows, columns).to(dtype)
    scales = layer.state.SCB if getattr(weight, "SCB", None) is None else weight.SCB  # the first forward moves them
    rounded: Tensor = bnb.functional.int8_vectorwise_dequant(weight.data[rows, columns], scales[rows])
    return rounded.to(dtype)


def _from_four_bits(bnb: Any, weight: Any, rows: slice, columns: slice) -> Tensor:
    """Return a part of a 4-bit matrix. Only this part is dequantized if blocks of one scale begin and end with it."""
    state = weight.quant_state
    (height, width), size = state.shape, state.blocksize
    start, stop, _ = columns.indices(width)
    if width % size or start % size or stop % size:
        matrix: Tensor = bnb.functional.dequantize_4bit(weight.data, state)
        return matrix[rows, columns]
    scales = state.absmax
    if state.nested:
        scales = bnb.functional.dequantize_blockwise(scales, state.state2) + state.offset
    packed = weight.data.view(height, width // 2)[rows, start // 2 : stop // 2].contiguous()
    part = bnb.functional.QuantState(
        absmax=scales.view(height, width // size)[rows, start // size : stop // size].float().contiguous().view(-1),
        shape=torch.Size((len(packed), stop - start)),
        code=state.code,
        blocksize=size,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )
    dequantized: Tensor = bnb.functional.dequantize_4bit(packed.view(-1, 1), part)
    return dequantized
