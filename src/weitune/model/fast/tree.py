"""The visibility rule of a packed row as tensors: token i sees token j exactly when ``j <= i < subtree_end[j]``.

For CPUs the tokens are cut into blocks of rows [a, b) with the keys that they need. Tokens are in depth-first order, so
all keys before a that any row of a block sees are ancestors of row a: the block needs only one gather of keys.

                  keys     S  U1 A1 A3 U2 A2
    rows  U1 A1            x  x  x
          A3 U2            x  x     x  x

``x`` marks gathered keys; each block needs only a small mask.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.data.answers import Ints
from weitune.data.pack import PackedBatch

BLOCK_ROWS = 64
"""Rows that attend together on a CPU: shorter blocks waste less on masked keys, longer ones call less often."""
CHUNK_TOKENS = 64
"""Tokens of a chunk in recurrent layers. With more, the delta rule's triangular systems take longer than the rest."""
HEADS_AT_ONCE = 4
"""Heads of keys that recurrent layers compute at once: with fewer, less exists at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Attending rows ``start`` to ``stop`` (exclusive) and the keys that they see."""

    start: int
    stop: int
    keys: Tensor
    """(K,) row indices: the ancestors of row ``start``, then the block itself."""
    seen: Tensor
    """(stop - start, K) which of the keys each row sees."""

    def rounded_up(self, unit: int) -> Block:
        """Return the block with its keys padded to a multiple of ``unit``; no row sees the padding."""
        spare = -len(self.keys) % unit
        return replace(self, keys=F.pad(self.keys, (0, spare)), seen=F.pad(self.seen, (0, spare)))


@dataclass(slots=True, eq=False)
class Tree:
    """The shape of a packed row as tensors on the model's device, and a cache for masks, which all layers share."""

    position_ids: Tensor
    """(T,)"""
    subtree_end: Tensor
    """(T,)"""
    cache: dict[Hashable, Any] = field(default_factory=dict)
    attending: Tensor | None = None
    """(U,) the rows whose queries attention is given, in this order; None: all"""
    chunk_tokens: int = CHUNK_TOKENS
    """Tokens of a chunk in recurrent layers"""
    heads_at_once: int = HEADS_AT_ONCE
    """Heads of keys in recurrent layers"""

    @classmethod
    def from_batch(cls, batch: PackedBatch, device: torch.device) -> Tree:
        return cls(torch.from_numpy(batch.position_ids).to(device), torch.from_numpy(batch.subtree_end).to(device))

    def rounded_up(self, unit: int) -> Tree:
        """Return the tree padded to a multiple of ``unit`` with tokens that see only themselves."""
        length = len(self.subtree_end)
        spare = -length % unit
        ends = torch.arange(length + 1, length + spare + 1, device=self.subtree_end.device)
        ends = torch.cat([self.subtree_end, ends])
        return Tree(F.pad(self.position_ids, (0, spare)), ends, chunk_tokens=self.chunk_tokens)

    def only(self, rows: Tensor) -> Tree:
        """Return the tree for attention of ``rows`` (U,) alone to the keys of all."""
        return Tree(self.position_ids, self.subtree_end, attending=rows)

    def numbers(self) -> tuple[Ints, Ints]:
        """Return ``position_ids`` and ``subtree_end`` as arrays in host memory."""
        return self.position_ids.cpu().numpy(), self.subtree_end.cpu().numpy()

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the result of ``make``, which is called once for each ``key``."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def seen(self, rows: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
        """Return which of ``keys`` each of ``rows`` sees, by the one rule: (len(rows), len(keys)).

        With ``window``, a token sees only that many positions back, itself included.
        """
        seen = (keys[None, :] <= rows[:, None]) & (rows[:, None] < self.subtree_end[keys][None, :])
        if window is not None:
            seen &= self.position_ids[rows][:, None] - self.position_ids[keys][None, :] < window
        return seen

    def mask(self, window: int | None = None) -> Tensor:
        """Return the mask (T, T), or (U, T) for some rows."""
        every = torch.arange(len(self.subtree_end), device=self.subtree_end.device)
        rows = every if self.attending is None else self.attending
        mask: Tensor = self.once(("mask", window), lambda: self.seen(rows, every, window))
        return mask

    def blocks(self, window: int | None = None) -> list[Block]:
        """Return the attending rows cut into blocks of at most ``BLOCK_ROWS``, each with the keys it needs."""
        blocks: list[Block] = self.once(("blocks", window), lambda: list(self._cut(window)))
        return blocks

    def _cut(self, window: int | None) -> Iterator[Block]:
        every = torch.arange(len(self.subtree_end), device=self.subtree_end.device)
        attending = every if self.attending is None else self.attending
        for start in range(0, len(attending), BLOCK_ROWS):
            rows = attending[start : start + BLOCK_ROWS]
            keys = every[(self.subtree_end > rows.min()) & (every <= rows.max())]
            seen = self.seen(rows, keys, window)
            used = seen.any(dim=0)  # a window hides distant ancestors from all rows of the block
            yield Block(start, start + len(rows), keys[used], seen[:, used])
