"""Keys and values of rows of different lengths, in memory that is allocated ahead and grows by doubling.

row 0   ■ ■ ■ ■ ■ ■ ■ · · ·      position p of a row is at index p
row 1   ■ ■ ■ · · · · · · ·
row 2   ■ ■ ■ ■ ■ · · · · ·      · is room, or left over from a row that was here before: never attended to
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 64


class KeyValueCache:
    """The cache of ``rows`` rows in L layers: keys and values of shape (rows, G, capacity, D) in each."""

    def __init__(self, layers: int, rows: int) -> None:
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self.rows = rows

    def append(self, layer: int, key: Tensor, value: Tensor, starts: list[int], first: int) -> tuple[Tensor, Tensor]:
        """Store ``key`` and ``value`` (B, G, T, D) of B rows from row ``first`` on, each from its own start.

        Returns the keys and values of these rows from position 0, shape (B, G, longest, D).
        """
        tokens = key.shape[2]
        end = max(starts) + tokens
        keys = self._keys[layer] = self._with_room(self._keys[layer], key, end)
        values = self._values[layer] = self._with_room(self._values[layer], value, end)
        rows = slice(first, first + len(starts))
        if min(starts) == max(starts):
            keys[rows, :, starts[0] : end] = key
            values[rows, :, starts[0] : end] = value
        else:
            for row, start in enumerate(starts):
                keys[first + row, :, start : start + tokens] = key[row]
                values[first + row, :, start : start + tokens] = value[row]
        return keys[rows, :, :end], values[rows, :, :end]

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
        grown = torch.zeros((self.rows, like.shape[1], capacity, like.shape[3]), dtype=like.dtype, device=like.device)
        if store is not None:
            grown[:, :, : store.shape[2]] = store
        return grown
