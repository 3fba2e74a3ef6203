"""Keys and values of rows of different lengths, in memory that is allocated ahead and grows by doubling.

row 0   ■ ■ ■ ■ ■ ■ ■ · · ·      position p of a row is at index p
row 1   ■ ■ ■ · · · · · · ·
row 2   ■ ■ ■ ■ ■ · · · · ·      · is room, or left over from a row that was here before: never attended to
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 64


class Place:
    """Where T tokens of B rows go: to the rows from ``first`` on, from the positions ``starts`` on.

    Rows may start at different positions if there is one token for each.
    """

    def __init__(self, starts: Sequence[int], tokens: int, first: int, device: torch.device) -> None:
        self.starts = starts
        self.end = max(starts) + tokens
        self.rows = slice(first, first + len(starts))
        self.even = min(starts) == max(starts)
        if not self.even:
            self.row_index = torch.arange(first, first + len(starts), device=device)
            self.positions = torch.tensor(starts, device=device)


class KeyValueCache:
    """The cache of ``rows`` rows in L layers: keys and values of shape (rows, G, capacity, D) in each, in ``dtype``."""

    def __init__(self, layers: int, rows: int, dtype: torch.dtype) -> None:
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self.rows, self._dtype = rows, dtype

    def append(self, layer: int, key: Tensor, value: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """Store ``key`` and ``value`` (B, G, T, D) of B rows at ``place``.

        Returns the keys and values of these rows from position 0, shape (B, G, longest, D).
        """
        stored = []
        for store, new in ((self._keys, key), (self._values, value)):
            room = store[layer] = self._with_room(store[layer], new, place.end)
            if place.even:
                room[place.rows, :, place.starts[0] : place.end] = new
            else:
                room[place.row_index, :, place.positions] = new[:, :, 0].to(room.dtype)
            stored.append(room[place.rows, :, : place.end])
        return stored[0], stored[1]

    @torch.inference_mode()
    def copy(self, source: KeyValueCache, source_row: int, row: int, length: int) -> None:
        """Copy the first ``length`` positions of a row of ``source`` to ``row``."""
        for store, other in ((self._keys, source._keys), (self._values, source._values)):
            for layer, taken in enumerate(other):
                if taken is not None and length:
                    part = taken[source_row, :, :length]
                    store[layer] = room = self._with_room(store[layer], part[None], length)
                    room[row, :, :length] = part

    def _with_room(self, store: Tensor | None, like: Tensor, end: int) -> Tensor:
        """Return ``store`` with room for ``end`` positions of all rows."""
        if store is not None and store.shape[2] >= end:
            return store
        capacity = max(_LEAST, 1 << (end - 1).bit_length())
        shape = self.rows, like.shape[1], capacity, like.shape[3]
        grown = torch.zeros(shape, dtype=self._dtype, device=like.device)
        if store is not None:
            grown[:, :, : store.shape[2]] = store
        return grown
