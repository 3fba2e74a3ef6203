"""A batch as tensors on the model's device: B rows of T tokens with N supervised predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.data.pack import PackedBatch
from weitune.data.pad import PaddedBatch
from weitune.model.fast.tree import Tree


@dataclass(frozen=True, slots=True, eq=False)
class _Tensors:
    input_ids: Tensor
    """(B, T)"""
    rows: Tensor
    """(U,) the positions that predict, each once, as indices into the B·T positions"""
    index: Tensor
    """(N,) index into ``rows`` of the position that makes each prediction"""
    targets: Tensor
    """(N,)"""
    weights: Tensor
    """(N,)"""


@dataclass(frozen=True, slots=True, eq=False)
class PaddedTensors(_Tensors):
    """The examples of a batch, one a row, padded to the longest."""

    attention_mask: Tensor
    """(B, T)"""

    def rounded_up(self, tokens: int, predictions: int) -> PaddedTensors:
        """Return the batch unchanged: the sizes of a padded batch are not rounded."""
        return self

    def inputs(self) -> dict[str, object]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "use_cache": False}


@dataclass(frozen=True, slots=True, eq=False)
class PackedTensors(_Tensors):
    """One packed row: B = 1."""

    tree: Tree

    def rounded_up(self, tokens: int, predictions: int) -> PackedTensors:
        """Pad T to a multiple of ``tokens``, and N and, as far as there are tokens, U to multiples of ``predictions``.

        The padding is isolated tokens and predictions of weight 0: loss and gradients are unchanged.
        """
        tree = self.tree.rounded_up(tokens)
        length = len(tree.subtree_end)
        idle = torch.ones(length, dtype=torch.bool, device=self.rows.device).index_fill_(0, self.rows, False)
        rows = torch.cat([self.rows, idle.nonzero()[: -len(self.rows) % predictions, 0]])
        more = -len(self.targets) % predictions
        index, targets, weights = (F.pad(x, (0, more)) for x in (self.index, self.targets, self.weights))
        input_ids = F.pad(self.input_ids, (0, length - self.input_ids.shape[1]))
        return PackedTensors(input_ids, rows, index, targets, weights, tree)

    @property
    def tensors(self) -> list[Tensor]:
        shape = self.tree.position_ids, self.tree.subtree_end
        return [self.input_ids, self.rows, self.index, self.targets, self.weights, *shape]

    def to(self, device: torch.device) -> PackedTensors:
        """Copy the row to ``device``, without the cached masks of its tree."""
        tensors = (tensor.to(device, copy=True) for tensor in self.tensors)
        input_ids, rows, index, targets, weights, position_ids, subtree_end = tensors
        return PackedTensors(input_ids, rows, index, targets, weights, Tree(position_ids, subtree_end))

    def inputs(self) -> dict[str, object]:
        """Return the keyword arguments for the model's forward. With a cache, tokens would see other branches."""
        position_ids = self.tree.position_ids[None]
        return {"input_ids": self.input_ids, "position_ids": position_ids, "tree": self.tree, "use_cache": False}


TensorBatch = PackedTensors | PaddedTensors


@overload
def to_tensors(batch: PackedBatch, device: torch.device) -> PackedTensors: ...


@overload
def to_tensors(batch: PackedBatch | PaddedBatch, device: torch.device) -> TensorBatch: ...


def to_tensors(batch: PackedBatch | PaddedBatch, device: torch.device) -> TensorBatch:
    """Copy ``batch`` to ``device``."""
    distinct, position = np.unique(batch.rows, return_inverse=True)
    input_ids, rows, index, targets, weights = (
        torch.from_numpy(array).to(device)
        for array in (batch.input_ids, distinct, position, batch.targets, batch.weights)
    )
    if isinstance(batch, PaddedBatch):
        mask = torch.from_numpy(batch.attention_mask).to(device)
        return PaddedTensors(input_ids, rows, index, targets, weights, mask)
    return PackedTensors(input_ids[None], rows, index, targets, weights, Tree.from_batch(batch, device))
