"""The rows of a mixture sorted by expert, and products of each expert's rows with its own matrix.

    chosen experts (T, k)     token 0: 2 0      token 1: 0 1      token 2: 2 0
    sorted rows (T·k)         expert 0: tokens 0 1 2   expert 1: token 1   expert 2: tokens 0 2

On a CPU each expert that was chosen is one piece, whose values stay in the processor's cache. On a GPU all rows are one
piece, multiplied by a grouped product: nothing depends on numbers that the host would have to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast import matmul

_FEW = {2: 16, 4: 8}
"""The unit to which an expert's rows are rounded up where oneDNN multiplies them, by the bytes of a number. It is
smaller than that of complete rows: an expert has few."""
_GROUPED_RANK = 8
"""The unit of an adapter's rank there: grouped products need rows of a multiple of 16 bytes."""


class Piece(Protocol):
    """Some of the sorted rows. Matrices (E, N, K) hold one for each expert."""

    @property
    def rows(self) -> slice:
        """Which of the sorted rows they are."""
        ...

    def take(self, x: Tensor) -> Tensor:
        """Return the rows (n, C) of the tokens' ``x`` (T, C). n may be rounded up; further rows are of any token."""
        ...

    def take_grads(self, x: Tensor) -> Tensor:
        """Do what :meth:`take` does, but further rows are 0."""
        ...

    def add_to(self, total: Tensor, values: Tensor) -> None:
        """Add ``values`` (n, C) of rows to those of their tokens, ``total`` (T, C)."""
        ...

    def of_rows(self, values: Tensor) -> Tensor:
        """Return the part of sorted ``values`` (S,) that belongs to the rows, (n, 1)."""
        ...

    def select(self, matrices: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what the products below need of ``matrices`` (E, N, K), in ``dtype``."""
        ...

    def vectors(self, vectors: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the vectors (E, N) of the rows' experts, (n, N) or (1, N), in ``dtype``."""
        ...

    def linear(self, x: Tensor, selected: Tensor) -> Tensor:
        """Return x Wᵀ of every row and its expert's frozen matrix (N, K): (n, K) → (n, N)."""
        ...

    def times(self, x: Tensor, selected: Tensor) -> Tensor:
        """Return x W: (n, N) → (n, K)."""
        ...

    def low(self, x: Tensor, selected: Tensor) -> Tensor:
        """Do what :meth:`times` does, for matrices of an adapter."""
        ...

    def write_sums(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Write the sums over each expert's rows of leftᵀ right to ``total`` (E, P, Q)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class OneExpert:
    """The rows of one expert."""

    expert: int
    rows: slice
    tokens: Tensor
    """(n,) rounded up"""

    @property
    def _count(self) -> int:
        count: int = self.rows.stop - self.rows.start
        return count

    def take(self, x: Tensor) -> Tensor:
        return x[self.tokens]

    def take_grads(self, x: Tensor) -> Tensor:
        taken = x[self.tokens]
        taken[self._count :] = 0
        return taken

    def add_to(self, total: Tensor, values: Tensor) -> None:
        total.index_add_(0, self.tokens[: self._count], values[: self._count])

    def of_rows(self, values: Tensor) -> Tensor:
        return F.pad(values[self.rows], (0, len(self.tokens) - self._count))[:, None]

    def select(self, matrices: Tensor, dtype: torch.dtype) -> Tensor:
        return matrices[self.expert].to(dtype)

    def vectors(self, vectors: Tensor, dtype: torch.dtype) -> Tensor:
        return vectors[self.expert, None].to(dtype)

    def linear(self, x: Tensor, selected: Tensor) -> Tensor:
        return matmul.linear(x, selected)

    def times(self, x: Tensor, selected: Tensor) -> Tensor:
        return matmul.times(x, selected)

    def low(self, x: Tensor, selected: Tensor) -> Tensor:
        return x @ selected

    def write_sums(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        torch.mm(left.T, right, out=total[self.expert])


@dataclass(frozen=True, slots=True, eq=False)
class AllExperts:
    """All rows, multiplied by grouped products."""

    rows: slice
    tokens: Tensor
    """(S,)"""
    experts: Tensor
    """(S,) of each row"""
    inverse: Tensor
    """(T·k,) where the rows of each token are"""
    ends: Tensor
    """(E,) where the rows of each expert end"""

    def take(self, x: Tensor) -> Tensor:
        return x[self.tokens]

    def take_grads(self, x: Tensor) -> Tensor:
        return x[self.tokens]

    def add_to(self, total: Tensor, values: Tensor) -> None:
        total.add_(values[self.inverse].view(len(total), -1, values.shape[1]).sum(1))

    def of_rows(self, values: Tensor) -> Tensor:
        return values[:, None]

    def select(self, matrices: Tensor, dtype: torch.dtype) -> Tensor:
        return matrices.to(dtype)

    def vectors(self, vectors: Tensor, dtype: torch.dtype) -> Tensor:
        return vectors[self.experts].to(dtype)

    def linear(self, x: Tensor, selected: Tensor) -> Tensor:
        return _grouped_mm(x, selected.transpose(1, 2), self.ends)

    def times(self, x: Tensor, selected: Tensor) -> Tensor:
        return _grouped_mm(x, selected, self.ends)

    def low(self, x: Tensor, selected: Tensor) -> Tensor:
        return _grouped_mm(x, selected, self.ends)

    def write_sums(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        total.copy_(_grouped_mm(left.T, right, self.ends))


@dataclass(frozen=True, slots=True, eq=False)
class SortedRows:
    """The S = T·k rows of a mixture in one pass, sorted by expert."""

    order: Tensor
    """(S,) the place of each row in the chosen experts (T, k), counted along tokens"""
    pieces: Sequence[Piece]
    rank_unit: int = 1
    """The unit of an adapter's rank"""

    def sort(self, values: Tensor) -> Tensor:
        """Return ``values`` (T, k) by row, (S,)."""
        return values.reshape(-1)[self.order]

    def unsort(self, values: Tensor) -> Tensor:
        """Return ``values`` (S,) by token and choice, (T·k,)."""
        return torch.empty_like(values).scatter_(0, self.order, values)


def sort_rows(index: Tensor, experts: int, dtype: torch.dtype, *, grouped: bool) -> SortedRows:
    """Sort the rows of tokens for which ``index`` (T, k) has the numbers of experts, for products in ``dtype``."""
    chosen, order = index.reshape(-1).sort(stable=True)
    tokens = order // index.shape[1]
    if grouped:
        ends = torch.searchsorted(chosen, torch.arange(experts, device=index.device), right=True, out_int32=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return SortedRows(order, [AllExperts(slice(None), tokens, chosen, inverse, ends)], _GROUPED_RANK)
    counts = chosen.bincount(minlength=experts).tolist()
    unit = [rounded(index.device.type, dtype, count) for count in counts]
    padded = F.pad(tokens, (0, max(unit)))
    pieces: list[Piece] = []
    start = 0
    for expert, count in enumerate(counts):
        if count:
            pieces.append(OneExpert(expert, slice(start, start + count), padded[start : start + unit[expert]]))
        start += count
    return SortedRows(order, pieces)


def rounded(device_type: str, dtype: torch.dtype, count: int) -> int:
    """Return ``count`` rows, rounded up where oneDNN generates code for every number of rows: few of them differ."""
    if matmul.round_rows(device_type, dtype) == 1:
        return count
    unit = max(_FEW[dtype.itemsize], 1 << count.bit_length() >> 4)
    return -(-count // unit) * unit


def can_group(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether such a device has a grouped product that needs no number on the host."""
    fast = device.type == "cuda" and dtype == torch.bfloat16
    return fast and hasattr(F, "grouped_mm") and torch.cuda.get_device_capability(device) >= (8, 0)


def _grouped_mm(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    product: Tensor = F.grouped_mm(x, matrices, offs=ends)
    return product
