"""The adapted model and its loss in one module: a row in, the weighted sum of its cross entropies out.

Being one module, it can be wrapped as a whole (by DDP, for instance) without bypassing the wrapper's hooks.

    Row ─▶ decoder ─▶ hidden states ─▶ [rows that predict] ─▶ head and loss in chunks ─▶ sum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.data.pack import PackedBatch
from weitune.data.pad import PaddedBatch
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import supervised_loss
from weitune.model.fast.matmul import round_rows
from weitune.model.fast.tree import Tree
from weitune.model.storage.shard import gathered
from weitune.recipe.schema import Recompute

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A batch as tensors on the model's device: B rows of T tokens with N supervised predictions.

    A packed row has B = 1, ``position_ids`` and a ``tree``; a padded batch has an ``attention_mask``.
    """

    input_ids: Tensor
    """(B, T)"""
    rows: Tensor
    """(U,) the positions that predict, each once, as indices into the B·T positions"""
    index: Tensor
    """(N,) which of ``rows`` makes each prediction"""
    targets: Tensor
    """(N,)"""
    weights: Tensor
    """(N,)"""
    position_ids: Tensor | None = None
    """(B, T)"""
    tree: Tree | None = None
    attention_mask: Tensor | None = None
    """(B, T)"""

    @classmethod
    def of(cls, batch: PackedBatch | PaddedBatch, device: torch.device) -> Row:
        """Copy ``batch`` to ``device``."""
        distinct, position = np.unique(batch.rows, return_inverse=True)
        input_ids, rows, index, targets, weights = (
            torch.from_numpy(array).to(device)
            for array in (batch.input_ids, distinct, position, batch.targets, batch.weights)
        )
        if isinstance(batch, PaddedBatch):
            mask = torch.from_numpy(batch.attention_mask).to(device)
            return cls(input_ids, rows, index, targets, weights, attention_mask=mask)
        tree = Tree.from_batch(batch, device)
        return cls(input_ids[None], rows, index, targets, weights, tree.position_ids[None], tree)

    def rounded_up(self, tokens: int, predictions: int) -> Row:
        """Return the packed row with tokens that no other sees, rows that predict nothing, and predictions that count
        nothing, so that T is a multiple of ``tokens``, N one of ``predictions``, and U one as far as there are tokens.

        Its loss and gradients are the same.
        """
        if self.tree is None or self.position_ids is None:
            return self
        tree = self.tree.rounded_up(tokens)
        length = len(tree.subtree_end)
        idle = torch.ones(length, dtype=torch.bool, device=self.rows.device).index_fill_(0, self.rows, False)
        rows = torch.cat([self.rows, idle.nonzero()[: -len(self.rows) % predictions, 0]])
        more = -len(self.targets) % predictions
        index, targets, weights = (F.pad(x, (0, more)) for x in (self.index, self.targets, self.weights))
        input_ids = F.pad(self.input_ids, (0, length - self.input_ids.shape[1]))
        return Row(input_ids, rows, index, targets, weights, tree.position_ids[None], tree)

    @property
    def tensors(self) -> list[Tensor]:
        """What a packed row consists of."""
        shape = [] if self.tree is None else [self.tree.position_ids, self.tree.subtree_end]
        return [self.input_ids, self.rows, self.index, self.targets, self.weights, *shape]

    def to(self, device: torch.device) -> Row:
        """Copy the packed row to ``device``, without the masks made for it."""
        tensors = [tensor.to(device, copy=True) for tensor in self.tensors]
        input_ids, rows, index, targets, weights, position_ids, subtree_end = tensors
        return Row(input_ids, rows, index, targets, weights, position_ids[None], Tree(position_ids, subtree_end))

    def inputs(self) -> dict[str, object]:
        """Return the keyword arguments for the model's forward. No cache: with one, a packed row would leak."""
        if self.tree is None:
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "use_cache": False}
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "tree": self.tree, "use_cache": False}


class SupervisedModel(nn.Module):
    """Wrap a causal language model so that calling it with a :class:`Row` returns the row's loss, a float32 sum."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        plain_head: bool = True,
        blocks: BlockDecoder | None = None,
        recompute: Recompute = "none",
    ) -> None:
        """Keep ``model``.

        ``plain_head`` says that its logits are the output layer's product and nothing more; ``blocks`` runs its decoder
        for packed rows in place of its own modules; ``recompute`` says what backward computes again instead of keeping
        (the model's own modules know whole blocks only).
        """
        super().__init__()
        self.model = model
        self.plain_head = plain_head
        self.recompute = recompute
        self._blocks = blocks
        if recompute != "none" and blocks is None:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, row: Row) -> Tensor:
        """Return the sum over the row's predictions of weight · cross entropy."""
        dtype = self._blocks.dtype if self._blocks is not None else self.model.dtype
        tokens, predictions = (
            round_rows(self.model.device.type, dtype, count) for count in (row.input_ids.shape[1], len(row.targets))
        )
        if tokens > 1:
            row = row.rounded_up(tokens, predictions)
        if not self.plain_head:
            logits = predicted_logits(self.model, row)
            losses = F.cross_entropy(logits.float(), row.targets.to(logits.device), reduction="none")
            return (losses * row.weights.to(losses.device)).sum()
        head = self.model.get_output_embeddings()
        hidden = self._states(row)[row.index]
        hidden, targets, weights = (x.to(head.weight.device) for x in (hidden, row.targets, row.weights))
        with gathered(head):
            return supervised_loss(hidden, head.weight, getattr(head, "bias", None), targets, weights)

    def _states(self, row: Row) -> Tensor:
        """Return the hidden states (U, C) of the positions that predict."""
        if self._blocks is None or row.tree is None:
            return hidden_states(self.model, row)[row.rows]
        return self._blocks.states(
            row.input_ids[0], row.tree, row.rows, training=self.training, recompute=self.recompute
        )


def hidden_states(model: PreTrainedModel, row: Row) -> Tensor:
    """Return the last hidden states of all positions of a row, (B·T, C), as the model's own modules compute them."""
    states: Tensor = model.get_decoder()(**row.inputs()).last_hidden_state
    return states.flatten(0, 1)


def predicted_logits(model: PreTrainedModel, row: Row) -> Tensor:
    """Return the model's own logits (N, V) of a row's predictions, whatever it does to them after its head."""
    if row.tree is not None:
        logits: Tensor = model(**row.inputs(), logits_to_keep=row.rows).logits
        return logits[0][row.index]
    logits = model(**row.inputs()).logits
    return logits.flatten(0, 1)[row.rows][row.index]
