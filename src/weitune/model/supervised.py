"""The adapted model and its loss in one module: a batch in, the weighted sum of its cross entropies out.

Because it is one module, it can be wrapped (by DDP, for instance) without bypassing the wrapper's hooks.

    examples ─▶ decoder ─▶ hidden states ─▶ [rows that predict] ─▶ head and loss in chunks ─▶ sum
    groups   ─▶ decoder ─▶ hidden states ─▶ [rows that predict] ─▶ head, in chunks ─▶ log-probabilities of predictions
                                                                ─▶ of answers ─▶ objective ─▶ loss
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.model.batch import AnswerTensors, PackedTensors, TensorBatch
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import (
    PLAIN_LOGITS,
    Head,
    LogitForm,
    Predictions,
    log_probs,
    loss_of_logits,
    supervised_loss,
)
from weitune.model.fast.matmul import round_rows
from weitune.model.fast.self_attention.observe import FOREVER
from weitune.model.storage.shard import gathered
from weitune.recipe.schema import Recompute

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Objective = Callable[[Tensor, AnswerTensors], Tensor]
"""From the log-probabilities of answers, (S,) in float64, to a loss, a scalar."""


class AnswerPass(NamedTuple):
    """What a pass over a batch of groups gives."""

    loss: Tensor
    """float64 scalar"""
    sums: Tensor
    """(S,) log-probability of every answer in nats, float64, without gradient"""


class SupervisedModel(nn.Module):
    """A causal language model that returns the loss of a batch: a float32 sum, or for groups an :class:`AnswerPass`.

    ``head`` is how it makes logits of the products of its frozen output layer; with None it computes them itself.
    ``blocks`` runs the decoder for packed rows instead of its own modules. ``recompute`` is what backward computes
    again instead of keeping it; the model's own modules can only recompute complete blocks. ``objective`` makes the
    loss of a batch of groups; without one it is the cross entropy of their answers, summed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        head: LogitForm | None = PLAIN_LOGITS,
        blocks: BlockDecoder | None = None,
        recompute: Recompute = "none",
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.recompute = recompute
        self.objective = objective
        self._blocks = blocks
        if recompute != "none" and blocks is None:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, batch: TensorBatch) -> Tensor | AnswerPass:
        """Return the sum over the batch's predictions of weight · cross entropy, or what its groups give."""
        dtype = self._blocks.dtype if self._blocks is not None else self.model.dtype
        device_type, length = self.model.device.type, batch.input_ids.shape[1]
        multiplied = batch.rows if batch.answers is None else batch.targets
        tokens, predictions = (round_rows(device_type, dtype, size) for size in (length, len(multiplied)))
        padded = batch.rounded_up(tokens, predictions) if tokens > 1 else batch
        if batch.answers is None or padded.answers is None:
            return self._supervised_loss(padded)
        sums = padded.answers.sums(self._log_probs(padded))
        own = sums[: len(batch.answers.liked)]
        return AnswerPass(-own.sum() if self.objective is None else self.objective(sums, padded.answers), own.detach())

    def _supervised_loss(self, batch: TensorBatch) -> Tensor:
        if self.head is None:
            logits = state_logits(self.model, batch)
            return loss_of_logits(logits, _predictions(batch, logits.device))
        predictions = _predictions(batch, self.model.get_output_embeddings().weight.device)
        return self._by_head(
            self.head, self.predicting_states(batch), lambda h, head: supervised_loss(h, head, predictions)
        )

    def _log_probs(self, batch: TensorBatch) -> Tensor:
        """Return the log-probability of every prediction, (N,) in float32."""
        if self.head is not None:
            states = self.predicting_states(batch)[batch.index]
            return self._by_head(self.head, states, lambda h, head: log_probs(h, head, batch.targets.to(h.device)))
        logits = state_logits(self.model, batch)[batch.index]
        return -F.cross_entropy(logits.float(), batch.targets.to(logits.device), reduction="none")

    def _by_head(self, form: LogitForm, states: Tensor, compute: Callable[[Tensor, Head], Tensor]) -> Tensor:
        """Return what ``compute`` makes of hidden ``states`` (…, C) and the output layer, on its device."""
        output = self.model.get_output_embeddings()
        with gathered(output):
            return compute(states.to(output.weight.device), Head(output.weight, getattr(output, "bias", None), form))

    def predicting_states(self, batch: TensorBatch) -> Tensor:
        """Return the hidden states (U, C) of the positions that predict."""
        if self._blocks is None or not isinstance(batch, PackedTensors) or self._too_far(batch):
            return hidden_states(self.model, batch)[batch.rows]
        return self._blocks.states(
            batch.input_ids[0], batch.tree, batch.rows, training=self.training, recompute=self.recompute
        )

    def _too_far(self, batch: PackedTensors) -> bool:
        """Return whether a token of ``batch`` is at a position from which the blocks are not the model's."""
        if self._blocks is None or self._blocks.positions >= FOREVER:
            return False
        return int(batch.tree.position_ids.max()) >= self._blocks.positions


def hidden_states(model: PreTrainedModel, batch: TensorBatch) -> Tensor:
    """Return the last hidden states of all positions, (B·T, C), as the model's own modules compute them."""
    states: Tensor = decoder_of(model)(**batch.inputs()).last_hidden_state
    return states.flatten(0, 1)


def state_logits(model: PreTrainedModel, batch: TensorBatch) -> Tensor:
    """Return the logits (U, V) of the positions that predict as the model itself computes (and perhaps scales) them."""
    if isinstance(batch, PackedTensors):
        logits: Tensor = model(**batch.inputs(), logits_to_keep=batch.rows).logits
        return logits[0]
    logits = model(**batch.inputs()).logits
    return logits.flatten(0, 1)[batch.rows]


def _predictions(batch: TensorBatch, device: torch.device) -> Predictions:
    states, targets, weights = (x.to(device) for x in (batch.index, batch.targets, batch.weights))
    return Predictions(states, targets, weights, batch.others)
