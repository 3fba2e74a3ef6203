"""Products with a frozen matrix, by the faster of the two libraries that PyTorch brings for a CPU.

PyTorch gives float32 to MKL, which runs code for AVX2 on every processor of AMD. oneDNN, which PyTorch takes for 16
bits and for compiled models, has code for AVX-512 that runs there too: for Qwen2.5-0.5B's feed-forward layers it is 8
to 25 % faster (docs/performance.md). So on such processors this module gives it the products with frozen matrices, if
these or their transposes are contiguous in memory; otherwise oneDNN takes hundreds of times longer. The rest is
PyTorch's choice.

oneDNN generates code for every shape and keeps it. Rows are rounded up (:func:`round_rows`) so that there are few
shapes.
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

WEIGHT_ROWS = 512, 2048
"""Rows of an output head that are multiplied at once on a CPU, by PyTorch and by oneDNN: faster than all at once."""
_ROUND = {2: 64, 4: 16}
"""What rows are rounded up to at least, by the bytes of a number."""
_CODE_BYTES = {2: 250 << 20, 4: 128 << 20}
"""Memory that oneDNN's code takes in the end, by the bytes of a number (measured)."""


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
    """Return whether the operator, which PyTorch has for its compiler, exists and computes the right product."""
    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(_multiplied(x, weight, None), x @ weight.T)
    except (AttributeError, RuntimeError, TypeError):
        return False


def by_onednn(kind: str, dtype: torch.dtype) -> bool:
    """Return whether this module gives products of ``dtype`` on a device of ``kind`` to oneDNN."""
    return kind == "cpu" and dtype == torch.float32 and onednn_is_faster()


def round_rows(kind: str, dtype: torch.dtype, rows: int = 1) -> int:
    """Return the unit that about ``rows`` rows are rounded up to a multiple of, for products on a device of ``kind``.

    It is more than 1 where oneDNN multiplies, given by this module or, for 16 bits, by PyTorch: the code that it
    generates for some hundred shapes takes time and gigabytes of memory.
    """
    by_shape = (kind == "cpu" and dtype.itemsize == 2) or by_onednn(kind, dtype)
    return max(_ROUND[dtype.itemsize], 1 << rows.bit_length() >> 6) if by_shape else 1


def kept_bytes(kind: str, dtype: torch.dtype) -> int:
    """Return the memory that oneDNN's code takes on a device of ``kind``: 0.6 MB for each of some hundred shapes."""
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


def linear_by_rows(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> Tensor:
    """Write x Wᵀ + b to ``out`` (T, N) and return it; on a CPU some rows of a ``weight`` (N, K) with large N at a time.

    Only these rows are converted at once, if the weight has another format than ``x``.
    """
    onednn = by_onednn(x.device.type, x.dtype)
    step = _weight_rows(onednn) if x.device.type == "cpu" else weight.shape[0]
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        rows = weight[part].to(x.dtype)
        if onednn:
            out[:, part] = linear(x, rows)
        else:
            torch.mm(x, rows.T, out=out[:, part])
    return out if bias is None else out.add_(bias.to(out.dtype))


def times_by_rows(x: Tensor, weight: Tensor, *, largest: Tensor, out: Tensor) -> None:
    """Write x W to ``out`` (T, K), where ``x`` (T, N) is used up; some rows of ``weight`` (N, K) at a time if need be.

    oneDNN adds up one product after another over the rows that it gets, and every addition after a large product is
    rounded coarsely. So the column of x that is the ``largest`` (T, 1), as a rule, is added last.
    """
    onednn = by_onednn(x.device.type, x.dtype)
    if weight.dtype == x.dtype and not onednn:
        torch.mm(x, weight, out=out)
        return
    if onednn:
        values = x.gather(1, largest)
        x.scatter_(1, largest, 0)
    out.zero_()
    step = _weight_rows(onednn)
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        add_times(out, x[:, part], weight[part].to(x.dtype))
    if onednn:
        out.addcmul_(values, weight[largest.squeeze(1)].to(x.dtype))


def _weight_rows(onednn: bool) -> int:
    pytorch_rows, onednn_rows = WEIGHT_ROWS
    return onednn_rows if onednn else pytorch_rows


def lay_by_columns(layer: Any) -> None:
    """Store the matrix (N, K) of a plain linear layer by columns, where oneDNN then multiplies slices of them."""
    weight = layer.weight
    if type(layer) is nn.Linear and by_onednn(weight.device.type, weight.dtype):
        weight.data = weight.data.T.contiguous().T


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN gets the product of ``x`` and ``weight`` or its transpose."""
    onednn = weight.dtype == x.dtype and by_onednn(x.device.type, x.dtype)
    return onednn and (weight.is_contiguous() or weight.T.is_contiguous())


_known_shapes: set[Hashable] = set()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b.

    A new shape is multiplied in another thread first: its code is generated there and stays in that thread's part of
    the heap. In this thread's part it would fragment the memory of tensors.
    """
    shape = x.shape, x.stride(), weight.shape, weight.stride(), bias is None
    if shape not in _known_shapes:
        _known_shapes.add(shape)
        # The thread must end: OpenMP's waits are slow with more threads than cores.
        with ThreadPoolExecutor(1) as apart, suppress(RuntimeError):  # no thread can be started
            apart.submit(_multiplied, x, weight, bias).result()
    return _multiplied(x, weight, bias)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
