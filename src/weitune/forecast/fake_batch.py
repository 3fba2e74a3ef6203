"""Batches of a wanted size for models of fake tensors: their tokens and masks have shapes, but no numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weitune.data.answers import Ints
from weitune.model.batch import PackedTensors, PaddedTensors, TensorBatch
from weitune.model.fast.tree import BLOCK_ROWS, Block, Tree

_BLOCKS = 8
"""Blocks of a row whose attention is measured."""
_CHAIN = 256
"""Tokens after which recurrent layers begin a new conversation: a chunk that waits for another takes long to measure,
but hardly keeps more."""


class _PackedRow(PackedTensors):
    __slots__ = ()

    def rounded_up(self, tokens: int, predictions: int) -> PackedTensors:
        """Return the row as it is: where padding would go depends on numbers, which fake tensors lack."""
        return self


class _Chains(Tree):
    """The tree of several rows of ``length`` tokens that share nothing, one after the other."""

    __slots__ = ("length",)

    def __init__(self, rows: int, length: int) -> None:
        super().__init__(torch.arange(length).repeat(rows), torch.empty(rows * length, dtype=torch.long))
        self.length = length
        self.heads_at_once = sys.maxsize  # fewer would take as long to measure as all

    def only(self, rows: Tensor) -> Tree:
        """Return the tree itself: blocks are measured with all rows."""
        return self

    def numbers(self) -> tuple[Ints, Ints]:
        """Return the numbers that fake tensors lack: recurrent layers cut rows into chunks by them."""
        rows, own = len(self.subtree_end) // self.length, np.arange(self.length)
        ends = np.minimum(own - own % _CHAIN + _CHAIN, self.length)
        return np.tile(own % _CHAIN, rows), (np.arange(rows)[:, None] * self.length + ends).flatten()

    def _cut(self, window: int | None) -> Iterator[Block]:
        """Yield a few long blocks whose masks are as large in all as those of the many short ones."""
        every, most = len(self.subtree_end), min(self.length, window or self.length)
        seen_keys = most - most * most // (2 * self.length) + BLOCK_ROWS
        rows = max(BLOCK_ROWS, every // _BLOCKS)
        for start in range(0, every, rows):
            stop = min(start + rows, every)
            keys = torch.zeros(seen_keys, dtype=torch.long)
            yield Block(start, stop, keys, torch.empty(stop - start, seen_keys, dtype=torch.bool))


def mask_bytes(tree: Tree | None) -> int:
    """Return the bytes of all masks that ``tree`` has made so far."""
    storages = (tensor.untyped_storage() for tensor in _tensors(list(tree.cache.values()) if tree else []))
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Block):
        yield from (value.keys, value.seen)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def fake_batch(rows: int, length: int, predictions: int, *, shared: bool) -> TensorBatch:
    """Return a batch of ``rows`` examples of ``length`` tokens, in one row if it is ``shared``."""
    tokens = rows * length
    predicting = torch.arange(predictions)
    targets, weights = torch.zeros(predictions, dtype=torch.long), torch.ones(predictions)
    if shared:
        ids = torch.zeros(1, tokens, dtype=torch.long)
        return _PackedRow(ids, predicting, predicting, targets, weights, _Chains(rows, length))
    ids = torch.zeros(rows, length, dtype=torch.long)
    return PaddedTensors(ids, predicting, predicting, targets, weights, torch.ones_like(ids))
