"""Multiply by a frozen matrix with the faster of the two libraries that PyTorch has for a CPU.

PyTorch multiplies float32 with MKL, which runs code for AVX2 on every processor of AMD. oneDNN, which PyTorch uses for
16 bits and for compiled models, runs code for AVX-512 there too: for Qwen2.5-0.5B's feed-forward layers it is 8 to 25 %
faster (docs/performance.md). So on such processors this module uses it for frozen matrices, if they or their transposes
are contiguous in memory; otherwise oneDNN takes hundreds of times longer. All other products are left to PyTorch.

oneDNN generates code for every shape and keeps it. Rows are rounded up (:func:`round_rows`) so that there are few
shapes.
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_ROWS = 512, 2048
"""Rows of an output head that PyTorch and oneDNN multiply at once on a CPU: faster than all at once."""
_PACKED_ROWS = 16
"""Rows for which matrices are packed; the same copy multiplies any number as fast."""
_ROUND = {2: 64, 4: 16}
"""The smallest unit to which rows are rounded up, by the bytes of a number."""
_FEWEST_ROWS = 16
"""Fewer rows than that are rounded up to a power of 2, at least to this."""
_CODE_BYTES = {2: 250 << 20, 4: 128 << 20}
"""The most memory that oneDNN's code takes, by the bytes of a number (measured)."""


@functools.cache
def onednn_is_faster() -> bool:
    """Return whether oneDNN multiplies float32 matrices faster on this processor than the library PyTorch chooses."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    return _vendor_is_amd() and _onednn_works()


def _vendor_is_amd(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    if sys.platform != "linux":
        return "AuthenticAMD" in platform.processor()
    with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in lines)


def _onednn_works() -> bool:
    """Return whether the operator that PyTorch has for its compiler exists and computes the right product."""
    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(_multiplied(x, weight, None), x @ weight.T)
    except (AttributeError, RuntimeError, TypeError):
        return False


def by_onednn(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether this module multiplies ``dtype`` on such a device with oneDNN."""
    return device_type == "cpu" and dtype == torch.float32 and onednn_is_faster()


def round_rows(device_type: str, dtype: torch.dtype, rows: int = 64) -> int:
    """Return the unit to a multiple of which about ``rows`` rows are rounded up, for products on such a device.

    It is more than 1 where oneDNN multiplies, called by this module or, for 16 bits, by PyTorch: without rounding, the
    code that it generates would take much time and gigabytes of memory.
    """
    by_shape = (device_type == "cpu" and dtype.itemsize == 2) or by_onednn(device_type, dtype)
    if not by_shape:
        return 1
    power_of_2 = max(_FEWEST_ROWS, 1 << (rows - 1).bit_length())
    return max(min(_ROUND[dtype.itemsize], power_of_2), 1 << rows.bit_length() >> 6)


def kept_bytes(device_type: str, dtype: torch.dtype) -> int:
    """Return the memory that oneDNN's code takes on such a device: 0.6 MB for each of some hundred shapes."""
    return _CODE_BYTES[dtype.itemsize] if round_rows(device_type, dtype) > 1 else 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b of ``x`` (T, K), ``weight`` (N, K) and ``bias`` (N,)."""
    return _onednn(x, weight, bias) if _suits(x, weight) else F.linear(x, weight, bias)


def packs(dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies packed matrices of ``dtype`` faster than PyTorch plain ones here."""
    return torch.backends.mkldnn.is_available() and (
        onednn_is_faster() if dtype == torch.float32 else dtype == torch.bfloat16 and _has_bfloat16()
    )


@functools.cache
def _has_bfloat16() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies ``x`` (T, K) by a copy of ``weight`` (N, K), and adds ``bias`` (N,).

    The copy lies in memory as oneDNN reads it. It is faster by a quarter for one row and by a half for six.
    """
    copy = pack(weight, _PACKED_ROWS)
    return lambda x: multiply_packed(x, copy, bias)


def pack(weight: Tensor, rows: int) -> Tensor:
    """Return a copy of ``weight`` (N, K) as oneDNN reads it to multiply about ``rows`` rows."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return copy


def multiply_packed(x: Tensor, copy: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b of ``x`` (T, K), the ``copy`` of W (N, K), and ``bias`` (N,)."""
    return _multiplied(x, copy, bias)


def add_packed(total: Tensor, x: Tensor, copy: Tensor) -> Tensor:
    """Return ``total`` (T, N) + x Wᵀ of the ``copy`` of W (N, K), rounded once."""
    added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, total, copy, None, "add")
    return added


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
    """Write x Wᵀ + b to ``out`` (T, N) and return it; on a CPU by some rows of ``weight`` (N, K) at a time.

    If the weight has another dtype than ``x``, only these rows are converted at once.
    """
    onednn = by_onednn(x.device.type, x.dtype)
    step = WEIGHT_ROWS[1 if onednn else 0] if x.device.type == "cpu" else weight.shape[0]
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        rows = weight[part].to(x.dtype)
        if onednn:
            out[:, part] = linear(x, rows)
        else:
            torch.mm(x, rows.T, out=out[:, part])
    return out if bias is None else out.add_(bias.to(out.dtype))


def times_by_rows(x: Tensor, weight: Tensor, *, largest: Tensor | None, out: Tensor) -> None:
    """Write x W to ``out`` (T, K), by some rows of ``weight`` (N, K) at a time if needed; ``x`` (T, N) is overwritten.

    oneDNN adds the products over N one after another, and rounds coarsely every time after it has added a large one. So
    the value of x in the column ``largest`` (T, 1), usually the largest of its row, is added last. Where another
    library multiplies, ``largest`` is not looked at and may be None.
    """
    largest = largest if by_onednn(x.device.type, x.dtype) else None
    if weight.dtype == x.dtype and largest is None:
        torch.mm(x, weight, out=out)
        return
    if largest is not None:
        values = x.gather(1, largest)
        x.scatter_(1, largest, 0)
    out.zero_()
    step = WEIGHT_ROWS[0 if largest is None else 1]
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        add_times(out, x[:, part], weight[part].to(x.dtype))
    if largest is not None:
        out.addcmul_(values, weight[largest.squeeze(1)].to(x.dtype))


def lay_by_columns(layer: Any) -> None:
    """Store the matrix (N, K) of a plain linear layer by columns if oneDNN multiplies it, as slices of columns need."""
    weight = layer.weight
    if type(layer) is nn.Linear and by_onednn(weight.device.type, weight.dtype):
        weight.data = weight.data.T.contiguous().T


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN multiplies ``x`` by ``weight`` or its transpose."""
    onednn = weight.dtype == x.dtype and by_onednn(x.device.type, x.dtype)
    onednn = onednn and type(x) is Tensor  # and no fake one, which has no numbers
    return onednn and (weight.is_contiguous() or weight.T.is_contiguous())


_known_shapes: set[Hashable] = set()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b.

    Another thread multiplies a new shape first: the code for it is generated there and stays in that thread's part of
    the heap. In this thread's part it would fragment the memory of tensors.
    """
    shape = x.shape, x.stride(), weight.shape, weight.stride(), bias is None
    if shape not in _known_shapes:
        _known_shapes.add(shape)
        # The thread must end: OpenMP's threads wait slowly if there are more of them than cores.
        with ThreadPoolExecutor(1) as apart, suppress(RuntimeError):  # no thread can be started
            apart.submit(_multiplied, x, weight, bias).result()
    return _multiplied(x, weight, bias)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b as oneDNN computes it; ``weight`` is a matrix (N, K) or a packed copy of one."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product
