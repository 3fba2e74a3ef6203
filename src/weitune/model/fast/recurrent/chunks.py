"""The chunks of a packed row as tensors, and the way of values from the row to the chunks' places and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weitune.data.tree_chunks import TreeChunks, cut_into_chunks, find_windows
from weitune.model.fast.tree import Tree


@dataclass(frozen=True, slots=True, eq=False)
class ChunkLevel:
    """Chunks that do not depend on each other; see :class:`weitune.data.tree_chunks.Level`."""

    count: int
    states: Tensor | None
    """(count,) index of the state that each continues from, among those that the level before leaves"""
    leaving: tuple[Tensor, Tensor] | None
    """(E,) chunk and place of each token whose state is left"""


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """N chunks of C places with the T tokens of a row."""

    shape: tuple[int, int]
    """(N, C)"""
    places: Tensor
    """(T,) where each row is, as an index into the N·C places"""
    seen: Tensor
    """(N, C, C) whether place i sees place j"""
    levels: Sequence[ChunkLevel]

    @classmethod
    def of(cls, tree: Tree) -> Chunks:
        """Return the chunks of a row, which all layers share."""
        made: Chunks = tree.once("chunks", lambda: cls._cut(tree))
        return made

    @classmethod
    def _cut(cls, tree: Tree) -> Chunks:
        return cls.from_numbers(cut_into_chunks(*tree.numbers(), tree.chunk_tokens), tree.position_ids.device)

    @classmethod
    def from_numbers(cls, cut: TreeChunks, device: torch.device) -> Chunks:
        def moved(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        levels = [
            ChunkLevel(
                level.stop - level.start,
                None if level.states is None else moved(level.states),
                None if level.leaving is None else (moved(level.leaving[0]), moved(level.leaving[1])),
            )
            for level in cut.levels
        ]
        count, size = cut.rows.shape
        return cls((count, size), moved(cut.places), moved(cut.seen), levels)

    def gather(self, x: Tensor) -> Tensor:
        """Return ``x`` (T, H, ...) at the places, (N, H, C, ...); zero at the empty ones."""
        count, size = self.shape
        spread: Tensor = _ToPlaces.apply(x, self.places, count * size)  # type: ignore[no-untyped-call]
        by_chunk: Tensor = spread.unflatten(0, (count, size))
        return by_chunk.transpose(1, 2).contiguous()

    def scatter(self, x: Tensor) -> Tensor:
        """Return the rows (T, H, ...) of what is at the places, (N, H, C, ...)."""
        taken: Tensor = _ToRows.apply(x.transpose(1, 2).flatten(0, 1), self.places)  # type: ignore[no-untyped-call]
        return taken

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Return the parts of ``x`` (N, ...) level by level. The gradient of slices would be as large as the whole."""
        parts: Sequence[Tensor] = x.split([level.count for level in self.levels])
        return parts


class _ToPlaces(torch.autograd.Function):
    """Puts each row in its place. Each has one, so the gradient gathers; that of an index would add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.places = places
        return x.new_zeros(count, *x.shape[1:]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].index_select(0, ctx.places), None, None


class _ToRows(torch.autograd.Function):
    """Takes each row from its place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.count = places, len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return grad.new_zeros(ctx.count, *grad.shape[1:]).index_copy_(0, ctx.places, grad), None


@dataclass(frozen=True, slots=True, eq=False)
class PathWindows:
    """The rows whose own conversation is not what stands before them; :class:`weitune.data.tree_chunks.Windows`."""

    rows: Tensor
    """(F,)"""
    before: Tensor
    """(F, k)"""

    def known(self, length: int) -> tuple[Tensor, Tensor]:
        """Return ``before`` within a row of ``length``, and (F, k, 1) whether it was: not before the beginning."""
        return self.before.clamp(max=length - 1), (self.before < length)[..., None]

    @classmethod
    def of(cls, tree: Tree, taps: int) -> PathWindows:
        """Return those of a row for a convolution of ``taps``, which all layers share."""
        made: PathWindows = tree.once(("windows", taps), lambda: cls._find(tree, taps))
        return made

    @classmethod
    def _find(cls, tree: Tree, taps: int) -> PathWindows:
        found, device = find_windows(tree.numbers()[0], taps), tree.position_ids.device
        return cls(torch.from_numpy(found.rows).to(device), torch.from_numpy(found.before).to(device))
