"""What a scan has at the places of its chunks, and what it keeps between its forward and its backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from weitune.model.fast.recurrent.chunks import ChunkLevel, Chunks

SMALLEST = -50.0
"""Decays below exp(SMALLEST) count as 0: products of them would be denormal numbers, which CPUs multiply slowly."""


class ScanRows(NamedTuple):
    """What a scan reads, or the gradients of that."""

    query: Tensor
    """(T, H, D)"""
    key: Tensor
    """(T, H, D)"""
    value: Tensor
    """(T, H, V)"""
    decay: Tensor
    """(T, H) logarithms"""
    beta: Tensor | None
    """(T, H) for the delta rule"""


@dataclass(slots=True, eq=False)
class ScanMemory:
    """What a scan keeps of its forward pass; empty before it."""

    read: Tensor | None = None
    """(T, H, V) what the tokens read"""
    written: Tensor | None = None
    """(N, H, C, V) what the tokens add to the state, without their keys"""
    states: list[Tensor | None] = field(default_factory=list)
    """(S, H, D, V) what the level before leaves for each level"""
    inverse: Tensor | None = None
    """(N, H, C, C) for the delta rule"""


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """What is at the C places of N chunks, and how they see each other."""

    query: Tensor
    """(N, H, C, D)"""
    key: Tensor
    """(N, H, C, D)"""
    beta: Tensor | None
    """(N, H, C, 1)"""
    between: Tensor
    """(N, H, C, C) the decay from place j to place i; 0 unless j is on the path to i"""
    since: Tensor
    """(N, H, C, 1) that from the start of the chunk to each place"""

    @classmethod
    def of(cls, rows: ScanRows, chunks: Chunks) -> Places:
        total = summed(chunks.seen, chunks.gather(rows.decay))[..., None]
        between = total - total.transpose(-1, -2)  # may be large between branches, and is not needed there
        between.masked_fill_(~chunks.seen[:, None] | (between < SMALLEST), -torch.inf).exp_()
        since = total.masked_fill_(total < SMALLEST, -torch.inf).exp_()
        beta = None if rows.beta is None else chunks.gather(rows.beta)[..., None]
        return cls(chunks.gather(rows.query), chunks.gather(rows.key), beta, between, since)

    def attends(self) -> Tensor:
        """Return exp(G_i - G_j) q_i · k_j (N, H, C, C)."""
        return (self.query @ self.key.transpose(-1, -2)).mul_(self.between)

    def overlaps(self) -> Tensor:
        """Return exp(G_i - G_j) k_i · k_j (N, H, C, C)."""
        return (self.key @ self.key.transpose(-1, -2)).mul_(self.between)

    def readers(self) -> Tensor:
        """Return what the state of the chunk is multiplied by: exp(G) q, for the delta rule above β exp(G) k."""
        if self.beta is None:
            return self.query * self.since
        count, heads, size, width = self.key.shape
        both = self.key.new_empty(count, heads, 2 * size, width)
        torch.mul(self.query, self.since, out=both[:, :, :size])
        torch.mul(self.key, self.beta * self.since, out=both[:, :, size:])
        return both


def summed(seen: Tensor, x: Tensor) -> Tensor:
    """Return the sums of ``x`` (N, H, C) over what ``seen`` (N, C, C) says that each place sees.

    Head by head: as one product of all heads, the sums are rounded twice as much.
    """
    return (seen[:, None].to(x.dtype) @ x[..., None]).squeeze(-1)


def continued(left: Tensor | None, level: ChunkLevel) -> Tensor | None:
    """Return the state (n, H, D, V) that each chunk of ``level`` continues from, of those ``left`` for it."""
    return None if left is None or level.states is None else left.index_select(0, level.states)
