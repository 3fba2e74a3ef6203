"""The adapted model and its loss in one module: a batch in, the weighted sum of its cross entropies out.

Being one module, it can be wrapped as a whole (by DDP, for instance) without bypassing the wrapper's hooks.

    batch ─▶ decoder ─▶ hidden states ─▶ [rows that predict] ─▶ head and loss in chunks ─▶ sum
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from weitune.model.batch import PackedTensors, TensorBatch
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import supervised_loss
from weitune.model.fast.matmul import round_rows
from weitune.model.storage.shard import gathered
from weitune.recipe.schema import Recompute

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SupervisedModel(nn.Module):
    """Wrap a causal language model so that calling it with a batch returns the batch's loss, a float32 sum."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        plain_head: bool = True,
        blocks: BlockDecoder | None = None,
        recompute: Recompute = "none",
    ) -> None:
        """Keep ``model``.

        With ``plain_head`` its logits are the product of its output layer and nothing more. ``blocks`` runs the decoder
        for packed rows in place of its own modules. ``recompute`` tells what backward computes again instead of keeping
        (the model's own modules know whole blocks only).
        """
        super().__init__()
        self.model = model
        self.plain_head = plain_head
        self.recompute = recompute
        self._blocks = blocks
        if recompute != "none" and blocks is None:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, batch: TensorBatch) -> Tensor:
        """Return the sum over the batch's predictions of weight · cross entropy."""
        dtype = self._blocks.dtype if self._blocks is not None else self.model.dtype
        tokens, predictions = (
            round_rows(self.model.device.type, dtype, count) for count in (batch.input_ids.shape[1], len(batch.targets))
        )
        if tokens > 1:
            batch = batch.rounded_up(tokens, predictions)
        if not self.plain_head:
            logits = predicted_logits(self.model, batch)
            losses = F.cross_entropy(logits.float(), batch.targets.to(logits.device), reduction="none")
            return (losses * batch.weights.to(losses.device)).sum()
        head = self.model.get_output_embeddings()
        hidden = self._predicting_states(batch)[batch.index]
        hidden, targets, weights = (x.to(head.weight.device) for x in (hidden, batch.targets, batch.weights))
        with gathered(head):
            return supervised_loss(hidden, head.weight, getattr(head, "bias", None), targets, weights)

    def _predicting_states(self, batch: TensorBatch) -> Tensor:
        """Return the hidden states (U, C) of the positions that predict."""
        if self._blocks is None or not isinstance(batch, PackedTensors):
            return hidden_states(self.model, batch)[batch.rows]
        return self._blocks.states(
            batch.input_ids[0], batch.tree, batch.rows, training=self.training, recompute=self.recompute
        )


def hidden_states(model: PreTrainedModel, batch: TensorBatch) -> Tensor:
    """Return the last hidden states of all positions, (B·T, C), as the model's own modules compute them."""
    states: Tensor = model.get_decoder()(**batch.inputs()).last_hidden_state
    return states.flatten(0, 1)


def predicted_logits(model: PreTrainedModel, batch: TensorBatch) -> Tensor:
    """Return the model's own logits (N, V) of a batch's predictions, with whatever it does to them after its head."""
    if isinstance(batch, PackedTensors):
        logits: Tensor = model(**batch.inputs(), logits_to_keep=batch.rows).logits
        return logits[0][batch.index]
    logits = model(**batch.inputs()).logits
    return logits.flatten(0, 1)[batch.rows][batch.index]
