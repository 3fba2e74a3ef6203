"""Products with a frozen matrix, by the faster of the two libraries that PyTorch brings for a CPU.

PyTorch gives float32 to MKL, whose code for processors of AMD is that for AVX2, whatever they have. oneDNN, which it
takes for 16 bits and for compiled models, has code for AVX-512 that runs on them too: for Qwen2.5-0.5B's feed-forward
layers 8 to 25 % faster (docs/performance.md). So there it gets the products with frozen matrices, as long as these, or
their transposes, lie in memory without gaps: with gaps it takes hundreds of times longer. All else is PyTorch's choice.

oneDNN writes code for every shape that it meets, and keeps it. For numbers of rows that are multiples of
:func:`round_rows` this is little, and they come again.
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROUND = {2: 64, 4: 16}
"""Rows at least, by the bytes of a number."""
_CODE_BYTES = {2: 250 << 20, 4: 128 << 20}
"""What the code for shapes takes in the end, by the bytes of a number (measured)."""


@functools.cache
def onednn_is_faster() -> bool:
    """Return whether oneDNN multiplies float32 matrices faster on this processor than what PyTorch chooses."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    return _vendor_is_amd() and _onednn_works()


def _vendor_is_amd(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    if sys.platform != "linux":
        return "AuthenticAMD" in platform.processor()
    with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in lines)


def _onednn_works() -> bool:
    """Return whether the operator, which PyTorch keeps for its compiler, is there and does what it is taken for."""
    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(_multiplied(x, weight, None), x @ weight.T)
    except (AttributeError, RuntimeError, TypeError):
        return False


def by_onednn(kind: str, dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies numbers of ``dtype`` here because this module gives them to it."""
    return kind == "cpu" and dtype == torch.float32 and onednn_is_faster()


def round_rows(kind: str, dtype: torch.dtype, rows: int = 1) -> int:
    """Return what about so many ``rows`` are rounded up to a multiple of, for products on a device of ``kind``.

    More than 1 where products run code that is written for their very shape and kept: oneDNN's, which PyTorch takes for
    16 bits on a CPU. Left alone, that takes time and, over some hundred shapes, gigabytes.
    """
    by_shape = (kind == "cpu" and dtype.itemsize == 2) or by_onednn(kind, dtype)
    return max(_ROUND[dtype.itemsize], 1 << rows.bit_length() >> 6) if by_shape else 1


def kept_bytes(kind: str, dtype: torch.dtype) -> int:
    """Return what the code for shapes takes on a device of ``kind``, 0.6 MB for each of some hundred (measured)."""
    return _CODE_BYTES[dtype.itemsize] if round_rows(kind, dtype) > 1 else 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b of ``x`` (T, K), ``weight`` (N, K) and ``bias`` (N,)."""
    return _onednn(x, weight, bias) if _suits(x, weight) else F.linear(x, weight, bias)


def times(x: Tensor, weight: Tensor) -> Tensor:
    """Return x W of ``x`` (T, N) and ``weight`` (N, K)."""
    return _onednn(x, weight.T) if _suits(x, weight) else x @ weight


def add_linear(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add x Wᵀ to ``total`` (T, N)."""
    add_times(total, x, weight.T)


def add_times(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add x W to ``total`` (T, K)."""
    if _suits(x, weight):
        total.add_(_onednn(x, weight.T))
    else:
        total.addmm_(x, weight)


def lay_by_columns(layer: Any) -> None:
    """Lay the matrix (N, K) of a plain linear layer by columns, where that lets oneDNN take some of them at a time."""
    weight = layer.weight
    if type(layer) is nn.Linear and by_onednn(weight.device.type, weight.dtype):
        weight.data = weight.data.T.contiguous().T


def _suits(x: Tensor, weight: Tensor) -> bool:
    ours = weight.dtype == x.dtype and by_onednn(x.device.type, x.dtype)
    return ours and (weight.is_contiguous() or weight.T.is_contiguous())


_met: set[Hashable] = set()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b.

    A shape that is new is multiplied in another thread first. There its code is written, and lies in that thread's part
    of the heap: between the tensors of this one it would leave holes that they do not fit.
    """
    shape = x.shape, x.stride(), weight.shape, weight.stride(), bias is None
    if shape not in _met:
        _met.add(shape)
        # The thread ends again: OpenMP's waits are slow with more threads than cores.
        with ThreadPoolExecutor(1) as apart, suppress(RuntimeError):  # no thread to be had: then it lies here
            apart.submit(_multiplied, x, weight, bias).result()
    return _multiplied(x, weight, bias)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
