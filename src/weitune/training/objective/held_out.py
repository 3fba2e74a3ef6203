"""The preference loss of groups that are not learned, over all of them at once, with the figures of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weitune.data.answers import AnswerBatch
from weitune.data.preference.mismatched import mismatched
from weitune.data.preference.reference import MISMATCHED_HELD
from weitune.data.preference.values import Group
from weitune.evaluate.loss import MeasuredLoss
from weitune.model.batch import answer_tensors
from weitune.progress import Progress
from weitune.training.objective.preference_loss import PreferenceLoss
from weitune.training.objective.preference_objective import Coefficients, PreferenceObjective
from weitune.training.preference.figures import FigureTally
from weitune.training.preference.methods import kto_shift


@dataclass(frozen=True, slots=True)
class HeldOutPreferences:
    """What a model makes of held-out groups."""

    loss: float
    figures: Mapping[str, float]
    liked: MeasuredLoss
    """The cross entropy of the liked answers."""


def measure_held_out(
    objective: PreferenceObjective, groups: Sequence[Group], progress: Progress | None = None
) -> HeldOutPreferences:
    """Return the loss of ``groups`` by the method of ``objective``, as if they were one step.

    Every process of a run must call it. ``progress`` is called with (passes done, passes in all).
    """
    learned = objective.learned
    others = mismatched(groups, learned.max_length) if learned.preference.method == "kto" else []
    measured = objective.meter([*groups, *others], progress)
    own = np.arange(len(measured)) < len(groups)
    sums, shift = measured.only(own).sums, 0.0
    if others and learned.reference is not None:
        gained = measured.only(~own).sums - learned.reference.parts[MISMATCHED_HELD].sums
        shift = float(kto_shift(torch.from_numpy(gained)))
    lengths = [answer.supervised for group in groups for answer in group.answers]
    liked = [each for group in groups for each in group.liked]
    answers = Coefficients.of(learned.preference, groups, shift).given_to(AnswerBatch.of([], lengths, liked), groups)
    loss = PreferenceLoss(learned.preference)(torch.from_numpy(sums), answer_tensors(answers, torch.device("cpu")))
    tally = FigureTally(learned.preference, shift)
    return HeldOutPreferences(
        loss=float(loss),
        figures=tally.figures(tally.of(groups, sums.tolist())),
        liked=MeasuredLoss(-float(sums[answers.liked].sum()), float(answers.lengths[answers.liked].sum())),
    )
