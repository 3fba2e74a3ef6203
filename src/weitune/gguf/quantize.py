"""Quantize a tensor: by the package ``gguf`` to the formats that it knows, by llama.cpp itself to the others.

llama.cpp's quantizer is the C function ``ggml_quantize_chunk``, which the library inside ``xllamacpp`` exports. It
takes an importance for every column: the mean square of what the column is multiplied by. It then chooses scales that
make the error of the product small, not that of the weights.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize
from torch import Tensor

from gguf import GGMLQuantizationType as Format
from weitune.errors import MissingExtraError, ModelError

_BY_GGUF = (Format.F32, Format.F16, Format.BF16, Format.Q8_0, Format.Q4_0)


def quantized(tensor: Tensor, form: Format, importance: Tensor | None = None) -> np.ndarray[Any, Any]:
    """Return ``tensor`` (…, in), in float32, in the number format ``form``.

    ``importance``, shape (in,), weighs the columns in the formats that llama.cpp quantizes. Raises ValueError
    if it has another shape, and what :func:`require_quantizer` does.
    """
    values = tensor.contiguous().numpy()
    if form in _BY_GGUF:
        plain: np.ndarray[Any, Any] = quantize(values, form)
        return plain
    block, size = GGML_QUANT_SIZES[form]
    rows, columns = values.size // values.shape[-1], values.shape[-1]
    if importance is not None and importance.shape != (columns,):
        raise ValueError(f"{tuple(importance.shape)} importances for {columns} columns")
    result = np.empty((*values.shape[:-1], columns // block * size), np.uint8)
    weights = None if importance is None else importance.float().contiguous().numpy()
    weights_at = None if weights is None else weights.ctypes.data
    written = _quantizer()(int(form), values.ctypes.data, result.ctypes.data, 0, rows, columns, weights_at)
    assert written == result.size  # noqa: S101  (the sizes of llama.cpp and of gguf are the same)
    return result


def require_quantizer() -> None:
    """Raise MissingExtraError without ``xllamacpp``, ModelError if it does not export llama.cpp's quantizer."""
    _quantizer()


@cache
def _quantizer() -> Any:
    try:
        from xllamacpp import xllamacpp as library
    except ImportError as error:
        raise MissingExtraError("xllamacpp", "llama-cpp") from error
    try:
        function = ctypes.CDLL(library.__file__).ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        raise ModelError("gguf.quantize.no_quantizer", reason=error) from error
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return function
