"""The losses of an engine's model, measured with the layout and the blocks of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weitune.data.preference.values import Group
from weitune.evaluate.answers import measure_answers
from weitune.evaluate.loss import MICRO_TOKENS, MeasuredLoss, measure_loss
from weitune.evaluate.pairs import Sums
from weitune.generate.engine import Engine
from weitune.model.capabilities import probe
from weitune.model.fast.attention import tree_attention
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.storage.allocator import releasing_in_the_end
from weitune.model.supervised import SupervisedModel
from weitune.progress import Progress


class EngineLosses:
    """The loss of an engine's model, whose capabilities are tried once.

    The memory of a measurement goes back to the system when it ends: what is done next, often answers, has tensors of
    other sizes.
    """

    def __init__(self, engine: Engine) -> None:
        model = engine.model
        with tree_attention(model, on=False):
            blocks = BlockDecoder.from_model(model)
            capabilities = probe(model, blocks)
        self._model = SupervisedModel(
            model, head=capabilities.head, blocks=blocks if capabilities.plain_blocks else None
        )
        self._capabilities = capabilities

    def __call__(self, examples: Sequence[Any], progress: Progress) -> MeasuredLoss:
        model, capabilities = self._model.model, self._capabilities
        with releasing_in_the_end(), tree_attention(model, on=capabilities.shares_rows):
            return measure_loss(self._model, examples, capabilities.layout, MICRO_TOKENS, model.device, progress)

    def answers(self, groups: Sequence[Group], progress: Progress) -> list[Sums]:
        """Return the log-probabilities of the answers of each group."""
        model, layout = self._model.model, self._capabilities.group_layout
        with releasing_in_the_end(), tree_attention(model, on=self._capabilities.shares_rows):
            return measure_answers(self._model, groups, layout, MICRO_TOKENS, model.device, progress)
