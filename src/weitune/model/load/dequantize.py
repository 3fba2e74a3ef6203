"""Tensors of a safetensors file as dense numbers, also those that are stored with fewer bits.

    plain    NAME                                                                 as it is
    FP8      NAME         (…, R, C)     8-bit floats                              value · scale
             NAME_scale   one for the tensor, a row, a column, or a block
    MXFP4    NAME_blocks  (E, N, G, 16) two 4-bit floats (E2M1) in a byte,        value · 2^(scale - 127),
                                        the low bits first                        with axes exchanged: (E, 32 G, N)
             NAME_scales  (E, N, G)     a power of two for 32 numbers

FP8 blocks are those of DeepSeek-V3 (arXiv 2412.19437): they start at the first row and column, and the last ones may
be cut off. MXFP4 is defined by the OCP Microscaling Formats (MX) specification 1.0; the layout is that of gpt-oss.
Products are made in float32 and rounded once.

Cost: a tensor is read from its file in pieces, so that memory holds the result and some 50 MB besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from weitune.model.load.weight_files import StoredWeight

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""By the names that safetensors has for them."""
_FOUR_BITS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of E2M1 without a sign."""
_PIECE = 1 << 20
"""Numbers that are dequantized at a time."""
_BIAS = 127
"""Of an exponent that is stored in a byte (E8M0)."""


class DenseTensor(Protocol):
    """A tensor of a file that can be read as dense numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the dense tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the dense tensor, if it is read without one."""

    @property
    def dequantized(self) -> bool:
        """Whether it is stored with fewer bits."""

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return a new tensor on the CPU."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that is stored as it is."""

    folder: Path
    stored: StoredWeight
    dequantized = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.stored.dtype]

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        tensor = _part(self.folder, self.stored, 0, self.stored.numel).view(self.shape)
        return tensor if dtype is None else tensor.to(dtype)


@dataclass(frozen=True, slots=True)
class Float8:
    """A tensor of 8-bit floats and the scales that they are multiplied by."""

    folder: Path
    stored: StoredWeight
    scales: StoredWeight
    block: tuple[int, int] | None
    """Rows and columns that share a scale, if neither all of a row, all of a column, nor the whole tensor do."""
    dtype: torch.dtype
    dequantized = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def grid(self) -> tuple[int, int, int]:
        """The scales as (matrices, rows, columns), with 1 where all share one; zeros if they do not fit."""
        *lead, rows, _ = self.shape
        scales = self.scales.shape
        if prod(scales) == 1:
            return 1, 1, 1
        if scales == (rows,) and not lead:
            return 1, rows, 1
        if lead and scales == tuple(lead):
            return prod(lead), 1, 1
        if len(scales) > 1 and scales[:-2] == tuple(lead):
            return prod(lead), scales[-2], scales[-1]
        return 0, 0, 0

    @property
    def fits(self) -> bool:
        """Whether the scales fit the tensor."""
        return all(self._steps())

    def _steps(self) -> tuple[int, int]:
        """Return how many rows and how many columns share a scale; 0 if that cannot be told."""
        (_, *counts), block = self.grid, self.block or (0, 0)
        high, wide = (_step(*each) for each in zip(self.shape[-2:], counts, block, strict=True))
        return high, wide

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        *lead, rows, columns = self.shape
        scales = _scale_values(_part(self.folder, self.scales, 0, self.scales.numel)).view(self.grid)
        high, wide = self._steps()
        dense = torch.empty(prod(lead), rows, columns, dtype=dtype or self.dtype)
        for matrix, first, last in _pieces(prod(lead), rows, columns):
            start = matrix * rows * columns
            values = _part(self.folder, self.stored, start + first * columns, start + last * columns).float()
            values = values.view(last - first, columns)
            _multiply(values, scales[matrix % len(scales), torch.arange(first, last) // high], wide)
            dense[matrix, first:last] = values
        return dense.view(self.shape)


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Matrices of experts in blocks of 32 4-bit floats with a common power of two."""

    folder: Path
    blocks: StoredWeight
    scales: StoredWeight
    dtype: torch.dtype
    dequantized = True

    @property
    def fits(self) -> bool:
        """Whether there is one scale for each block."""
        shape = self.blocks.shape
        return len(shape) == 4 and shape[:3] == self.scales.shape and 2 * shape[3] == 32

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, groups, size = self.blocks.shape
        return experts, 2 * groups * size, rows

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        experts, columns, rows = self.shape
        groups = self.scales.shape[2]
        pairs = _pairs()
        dense = torch.empty(self.shape, dtype=dtype or self.dtype)
        for expert, first, last in _pieces(experts, rows, columns):
            start, stop = expert * rows + first, expert * rows + last
            packed = _part(self.folder, self.blocks, start * columns // 2, stop * columns // 2)
            exponents = _part(self.folder, self.scales, start * groups, stop * groups)
            values = pairs[packed.int()].view(last - first, groups, -1)
            values *= _scale_values(exponents).view(last - first, groups, 1)
            dense[expert, :, first:last] = values.view(last - first, columns).T
        return dense


def _step(length: int, count: int, block: int) -> int:
    """Return how many of ``length`` rows or columns share one of ``count`` scales; 0 if that cannot be told."""
    if block and count == -(-length // block):
        return block
    return {length: 1, 1: length}.get(count, 0)


def _pieces(matrices: int, rows: int, columns: int) -> Iterator[tuple[int, int, int]]:
    """Yield (matrix, first row, last row + 1) of each piece."""
    step = max(1, _PIECE // columns)
    for matrix in range(matrices):
        for first in range(0, rows, step):
            yield matrix, first, min(first + step, rows)


def _part(folder: Path, stored: StoredWeight, first: int, last: int) -> Tensor:
    """Return the numbers ``first`` to ``last`` of a tensor, as they are stored. The file is read, not mapped."""
    dtype = DTYPES[stored.dtype]
    if last == first:
        return torch.empty(0, dtype=dtype)
    content = bytearray((last - first) * dtype.itemsize)
    with (folder / stored.file).open("rb", buffering=0) as file:
        file.seek(stored.start + first * dtype.itemsize)
        view, done = memoryview(content), 0
        while done < len(content):  # one call reads at most 2 GiB
            if not (read := file.readinto(view[done:])):
                raise OSError(f"{stored.file} ends early")
            done += read
    return torch.frombuffer(content, dtype=dtype)


def _scale_values(stored: Tensor) -> Tensor:
    """Return scales in float32; a byte is an exponent."""
    if stored.dtype == torch.uint8:
        return torch.ldexp(torch.ones(stored.shape), stored.int() - _BIAS)
    return stored.float()


def _multiply(values: Tensor, scales: Tensor, wide: int) -> None:
    """Multiply ``values`` (rows, columns) in place by ``scales`` (rows, groups) of ``wide`` columns each."""
    whole = values.shape[1] // wide * wide
    if whole:
        values[:, :whole].unflatten(1, (-1, wide)).mul_(scales[:, : whole // wide, None])
    if whole < values.shape[1]:
        values[:, whole:].mul_(scales[:, -1:])


def _pairs() -> Tensor:
    """Return the two numbers of each byte (256, 2)."""
    values = torch.tensor([*_FOUR_BITS, *(-value for value in _FOUR_BITS)])
    byte = torch.arange(256)
    return torch.stack([values[byte & 15], values[byte >> 4]], dim=1)


def lazily(tensor: DenseTensor, dtype: torch.dtype) -> Any:
    """Return ``tensor`` as a value of a state dict that transformers reads when it is its turn.

    Only what was quantized comes in ``dtype``; transformers converts the rest, and keeps some of it in float32.
    """
    return _Lazy(tensor, dtype if tensor.dequantized else None)


@dataclass(frozen=True, slots=True)
class _Lazy:
    tensor: DenseTensor
    dtype: torch.dtype | None

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor.read(self.dtype)[index]
