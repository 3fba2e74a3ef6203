"""The loss of preferences as a pass computes it, from the log-probabilities of its answers.

    loss = Σ over groups of coefficient · method's term  −  Σ over answers of sft · L

The coefficients are divided already, by sums over the whole step on all devices (:mod:`.preference_objective`), so the
losses of passes are added up. Everything is elementwise on tensors of fixed shapes: a CUDA graph can record it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from weitune.model.batch import AnswerTensors
from weitune.recipe.preference import Preference
from weitune.training.preference.methods import Scored, losses


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """The loss of a batch of groups by the method of a recipe."""

    preference: Preference

    def __call__(self, sums: Tensor, answers: AnswerTensors) -> Tensor:
        """Return the loss, a scalar, of answers with the log-probabilities ``sums`` (S,)."""
        scored = Scored(sums, answers.lengths, answers.reference)
        terms = losses(self.preference, scored, answers.liked, answers.shift)
        of_group = answers.coefficient[:: len(sums) // len(terms)]  # that of a pair stands at both of its answers
        return (of_group * terms).sum() - (answers.sft * sums).sum()
