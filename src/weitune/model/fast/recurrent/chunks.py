"""The chunks of a packed row as tensors, and the way of values from the row to the chunks' places and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
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


class HeadIndices(NamedTuple):
    """The ways of H heads of T rows (T, H) to the N·C places (N, H, C) and back, as indices into each."""

    there: Tensor
    """(N·H·C,) what comes to each place"""
    empty: Tensor
    """(E,) the places that nothing comes to"""
    back: Tensor
    """(T·H,) where each head of a row is"""


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """N chunks of C places with the T tokens of a row."""

    cut: TreeChunks
    """The same in host memory"""
    seen: Tensor
    """(N, C, C) whether place i sees place j"""
    levels: Sequence[ChunkLevel]
    indices: dict[int, HeadIndices] = field(default_factory=dict)
    """by H"""

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
        return cls(cut, moved(cut.seen), levels)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)"""
        count, size = self.cut.rows.shape
        return count, size

    def gather(self, x: Tensor) -> Tensor:
        """Return ``x`` (T, H, ...) at the places, (N, H, C, ...); zero at the empty ones."""
        count, size = self.shape
        indices = self._indices(x.shape[1])
        taken = x.flatten(0, 1).index_select(0, indices.there).index_fill_(0, indices.empty, 0)
        return taken.view(count, x.shape[1], size, *x.shape[2:])

    def scatter(self, x: Tensor) -> Tensor:
        """Return the rows (T, H, ...) of what is at the places, (N, H, C, ...)."""
        taken = x.flatten(0, 2).index_select(0, self._indices(x.shape[1]).back)
        return taken.view(len(self.cut.places), x.shape[1], *x.shape[3:])

    def _indices(self, heads: int) -> HeadIndices:
        if heads not in self.indices:
            self.indices[heads] = self._index(heads)
        return self.indices[heads]

    def _index(self, heads: int) -> HeadIndices:
        rows, (chunk, place) = self.cut.rows[:, None], np.divmod(self.cut.places[:, None], self.shape[1])
        head, empty = np.arange(heads), rows == len(chunk)
        there = np.where(empty, 0, rows) * heads + head[:, None]
        back = (chunk * heads + head) * self.shape[1] + place
        arrays = there.ravel(), np.flatnonzero(np.broadcast_to(empty, there.shape)), back.ravel()
        return HeadIndices(*(torch.from_numpy(each).to(self.seen.device) for each in arrays))

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Return the parts of ``x`` (N, ...) level by level."""
        parts: Sequence[Tensor] = x.split([level.count for level in self.levels])
        return parts


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
