"""The rows of a mixture sorted by expert, and products of each expert's rows with its own matrix.

    chosen experts (T, k)     token 0: 2 0      token 1: 0 1      token 2: 2 0
    sorted rows               expert 0: tokens 0 1 2   expert 1: token 1   expert 2: tokens 0 2

On a CPU a piece is as many experts as have about a thousand rows, whose values stay in the processor's cache; each that
was chosen has a product of its own. On a GPU all rows are one piece, multiplied by a grouped product: nothing depends
on numbers that the host would have to wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast import matmul

PIECE_ROWS = 1024
"""Rows of a piece on a CPU, unless one expert has more. With fewer, the work around the products takes longer."""
_FEW = {2: 16, 4: 8}
"""The unit to which an expert's rows are rounded up where oneDNN multiplies them, by the bytes of a number. It is
smaller than that of complete rows: an expert has few."""
_GROUPED_UNIT = 8
"""Grouped products need rows of a multiple of so many numbers of 16 bits."""


class Piece(Protocol):
    """Some of the sorted rows. Matrices are (E, N, K), one for each expert, in any dtype."""

    @property
    def rows(self) -> slice:
        """Which of the sorted rows they are."""
        ...

    @property
    def tokens(self) -> Tensor:
        """The token of each, (n,)."""
        ...

    @property
    def experts(self) -> Tensor:
        """The expert of each, (n,)."""
        ...

    def linear(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Return x Wᵀ of every row and its expert's frozen matrix: (n, K) → (n, N)."""
        ...

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Return x W: (n, N) → (n, K)."""
        ...

    def low(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Do what :meth:`times` does, for matrices of an adapter."""
        ...

    def write_sums(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Write the sum over each expert's rows of leftᵀ right to ``total`` (E, P, Q), for experts with rows."""
        ...

    def add_to(self, total: Tensor, values: Tensor) -> None:
        """Add ``values`` (n, C) of rows to those of their tokens, ``total`` (T, C)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SomeExperts:
    """The rows of some experts, each multiplied by itself."""

    rows: slice
    tokens: Tensor
    experts: Tensor
    spans: Sequence[tuple[int, slice]]
    """Each expert, and which rows of the piece are its own"""

    def linear(self, x: Tensor, matrices: Tensor) -> Tensor:
        return torch.cat([matmul.linear(x[rows], matrices[e].to(x.dtype)) for e, rows in self.spans])

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        return torch.cat([matmul.times(x[rows], matrices[e].to(x.dtype)) for e, rows in self.spans])

    def low(self, x: Tensor, matrices: Tensor) -> Tensor:
        return torch.cat([x[rows] @ matrices[e] for e, rows in self.spans])

    def write_sums(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        for expert, rows in self.spans:
            torch.mm(left[rows].T, right[rows], out=total[expert])

    def add_to(self, total: Tensor, values: Tensor) -> None:
        if total.is_cuda:  # where index_add_ adds in no fixed order
            total.index_put_((self.tokens,), values, accumulate=True)
        else:
            total.index_add_(0, self.tokens, values)


@dataclass(frozen=True, slots=True, eq=False)
class AllExperts:
    """All rows, multiplied by grouped products."""

    rows: slice
    tokens: Tensor
    experts: Tensor
    places: Tensor
    """(T·k,) the row of each choice"""
    ends: Tensor
    """(E,) where the rows of each expert end"""

    def linear(self, x: Tensor, matrices: Tensor) -> Tensor:
        return _grouped_mm(x, matrices.to(x.dtype).mT, self.ends)

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        return _grouped_mm(x, matrices.to(x.dtype), self.ends)

    def low(self, x: Tensor, matrices: Tensor) -> Tensor:
        return _grouped_mm(x, matrices, self.ends)

    def write_sums(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        total.copy_(_grouped_mm(left.T, right, self.ends))

    def add_to(self, total: Tensor, values: Tensor) -> None:
        total.add_(values[self.places].view(len(total), -1, values.shape[1]).sum(1))


@dataclass(frozen=True, slots=True, eq=False)
class SortedRows:
    """The rows of a mixture in one pass: T·k, and on some CPUs a few more, whose weight is 0."""

    places: Tensor
    """(T·k,) the row of each choice, counted along tokens"""
    count: int
    pieces: Sequence[Piece]
    rank_unit: int = 1
    """The unit of an adapter's rank"""

    def sort(self, values: Tensor) -> Tensor:
        """Return ``values`` (T, k) by row."""
        return values.new_zeros(self.count).scatter_(0, self.places, values.reshape(-1))

    def unsort(self, values: Tensor) -> Tensor:
        """Return ``values`` of rows by token and choice, (T·k,)."""
        return values[self.places]


def sort_rows(index: Tensor, experts: int, dtype: torch.dtype, *, grouped: bool) -> SortedRows:
    """Sort the rows of tokens for which ``index`` (T, k) has the numbers of experts, for products in ``dtype``."""
    chosen, order = index.reshape(-1).sort(stable=True)
    rows = torch.arange(len(order), device=index.device)
    if grouped:
        ends = torch.searchsorted(chosen, torch.arange(experts, device=index.device), right=True, out_int32=True)
        places = torch.empty_like(order).scatter_(0, order, rows)
        whole = AllExperts(slice(None), order // index.shape[1], chosen, places, ends)
        return SortedRows(places, len(order), [whole], _GROUPED_UNIT)
    counts = chosen.bincount(minlength=experts)
    sizes = [rounded(index.device.type, dtype, count) for count in counts.tolist()]
    size = torch.tensor(sizes, device=index.device)
    own = (size.cumsum(0) - size - counts.cumsum(0) + counts)[chosen] + rows
    total = sum(sizes)
    places, tokens = torch.empty_like(order).scatter_(0, order, own), order.new_zeros(total)
    tokens[own] = order // index.shape[1]
    return SortedRows(places, total, _cut(sizes, tokens))


def _cut(sizes: Sequence[int], tokens: Tensor) -> list[Piece]:
    """Cut the rows of experts with ``sizes`` rows each into pieces."""
    pieces: list[Piece] = []
    spans: list[tuple[int, slice]] = []
    start = length = 0
    for expert, size in enumerate([*sizes, 0]):
        if spans and (length + size > PIECE_ROWS or expert == len(sizes)):
            rows = slice(start, start + length)
            owners = torch.tensor([e for e, _ in spans], device=tokens.device)
            repeats = torch.tensor([each.stop - each.start for _, each in spans], device=tokens.device)
            pieces.append(SomeExperts(rows, tokens[rows], owners.repeat_interleave(repeats, output_size=length), spans))
            spans, start, length = [], start + length, 0
        if size:
            spans = [*spans, (expert, slice(length, length + size))]
            length += size
    return pieces


def rounded(device_type: str, dtype: torch.dtype, count: int) -> int:
    """Return ``count`` rows, rounded up where oneDNN generates code for every number of rows: few of them differ."""
    if matmul.round_rows(device_type, dtype) == 1:
        return count
    unit = max(_FEW[dtype.itemsize], 1 << count.bit_length() >> 4)
    return -(-count // unit) * unit


def can_group(device: torch.device, dtype: torch.dtype, widths: Iterable[int]) -> bool:
    """Return whether such a device has a grouped product that needs no number on the host, for rows of ``widths``."""
    fast = device.type == "cuda" and dtype == torch.bfloat16 and not any(width % _GROUPED_UNIT for width in widths)
    return fast and hasattr(F, "grouped_mm") and torch.cuda.get_device_capability(device) >= (8, 0)


def _grouped_mm(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    product: Tensor = F.grouped_mm(x, matrices, offs=ends)
    return product
