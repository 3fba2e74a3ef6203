"""The preference loss of a step as the training loop sees it.

    loss = Σ over groups of weight / P · method's term  +  Σ over liked answers of weight · sft_weight / T · (− L)

P is the sum of the weights of the step's groups, and T that of the learned tokens of their liked answers, over all
devices: both divisions are by what the whole step has, so micro-batches and devices make no difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weitune.data.answers import AnswerBatch
from weitune.data.preference.mismatched import first_mismatched, mismatched
from weitune.data.preference.reference import MISMATCHED
from weitune.data.preference.values import Group
from weitune.data.schedule import Plan
from weitune.recipe.preference import Preference
from weitune.training.objective.step_objective import Laid, PassResult
from weitune.training.preference.answer_meter import AnswerMeter
from weitune.training.preference.figures import NO_TALLY, FigureTally, Tally
from weitune.training.preference.methods import kto_shift, sft_weight
from weitune.training.preference.preferences import Preferences

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class Coefficients:
    """How much each answer of some groups counts, divided by what all of them have together."""

    preference: Preference
    groups_weight: float
    """P"""
    liked_tokens_weight: float
    """T"""
    shift: float = 0.0
    """z of KTO"""

    @classmethod
    def of(cls, preference: Preference, groups: Sequence[Group], shift: float = 0.0) -> Coefficients:
        """Return the coefficients of a step that has ``groups``, on all devices."""
        tokens = sum(
            group.weight * answer.supervised
            for group in groups
            for answer, liked in zip(group.answers, group.liked, strict=True)
            if liked
        )
        return cls(preference, sum(group.weight for group in groups), tokens, shift)

    def given_to(self, answers: AnswerBatch, groups: Sequence[Group]) -> AnswerBatch:
        """Return the ``answers`` of ``groups`` with everything that their loss depends on."""
        weights = np.repeat([group.weight for group in groups], [len(group.answers) for group in groups])
        reference = [value for group in groups for value in (group.reference or (0.0,) * len(group.answers))]
        own_loss = sft_weight(self.preference) * weights * answers.liked
        return replace(
            answers,
            reference=np.asarray(reference),
            coefficient=weights / (self.groups_weight or 1.0),
            sft=own_loss / (self.liked_tokens_weight or 1.0),
            shift=self.shift,
        )


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """A preference loss over the groups of a plan."""

    learned: Preferences
    plan: Plan
    meter: AnswerMeter
    """Measures mismatched answers, which KTO needs."""

    @property
    def preference(self) -> Preference:
        return self.learned.preference

    def begin(self, step: int, items: Sequence[Group]) -> PreferenceStep:
        """Return the objective of ``step`` (from 0) with these groups, on all devices."""
        shift = self._shift(step, items)
        tally = FigureTally(self.preference, shift)
        return PreferenceStep(Coefficients.of(self.preference, items, shift), tally, self.meter.accelerator)

    def _shift(self, step: int, groups: Sequence[Group]) -> float:
        """Return z of KTO: how much the mismatched answers of the whole step gained in the mean, but at least 0."""
        reference = self.learned.reference
        others = mismatched(groups, self.learned.max_length) if self.preference.method == "kto" else []
        if not others or reference is None:
            return 0.0
        start = first_mismatched(self.plan, step)
        before = reference.parts[MISMATCHED].sums[start : start + len(others)]
        return float(kto_shift(torch.from_numpy(self.meter(others).sums - before)))


@dataclass(slots=True)
class PreferenceStep:
    """The objective of one step."""

    coefficients: Coefficients
    tally: FigureTally
    accelerator: Accelerator
    _told: Tally = field(default_factory=NO_TALLY.copy)

    @property
    def divisor(self) -> float:
        """1: the coefficients are divided already."""
        return 1.0

    def weighed(self, laid: Laid, items: Sequence[Group]) -> Laid:
        """Return a laid-out pass over ``items`` with the numbers that its loss depends on."""
        if laid.answers is None:
            raise ValueError("a preference loss needs groups")
        return replace(laid, answers=self.coefficients.given_to(laid.answers, items))

    def took(self, items: Sequence[Group], result: PassResult) -> Tensor:
        """Tally the log-probabilities of a pass over ``items`` and return its loss."""
        loss, sums = result
        self._told += self.tally.of(items, sums.tolist())
        return loss

    def figures(self) -> Mapping[str, float]:
        """Return the figures of the step over all devices; every process must ask."""
        told = torch.from_numpy(self._told)
        if self.accelerator.num_processes > 1:
            told = self.accelerator.reduce(told.to(self.accelerator.device), reduction="sum").cpu()
        return self.tally.figures(told.numpy())
