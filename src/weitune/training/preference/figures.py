"""What a step, or a validation, tells of preferences: rewards and log-probabilities of its answers.

    rewards/chosen, rewards/rejected     mean reward of the chosen (liked) and of the rejected (disliked) answers
    rewards/margins                      how much larger the first is
    rewards/accuracies                   share of pairs whose chosen answer has the larger reward; of judged answers,
                                         those whose reward is on the right side of β z; equal ones count half
    logps/chosen, logps/rejected         mean summed log-probability of an answer, in nats
    logps/chosen_gain                    how much larger that of the chosen ones is than under the reference
    kl                                   z of KTO

An answer's reward is β times what the loss compares: its log-probability, less that under the reference if there is
one, and divided by the answer's length for the methods that do so (Rafailov et al., arXiv 2305.18290, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weitune.data.preference.values import Group
from weitune.recipe.preference import Preference

BY_LENGTH = ("dpo_norm", "ipo", "orpo", "simpo")
"""Methods that compare log-probabilities per token."""
Tally = npt.NDArray[np.float64]
"""(10,) sums over answers and groups; those of parts can be added."""
NO_TALLY: Tally = np.zeros(10)
_CHOSEN, _REJECTED, _COMPARED = slice(0, 4), slice(4, 8), slice(8, 10)
"""Of the chosen and of the rejected answers: how many, their rewards, their log-probabilities and what these gained;
of the groups: how many, and how many are on the right side."""


@dataclass(frozen=True, slots=True)
class FigureTally:
    """Adds up the figures of groups."""

    preference: Preference
    shift: float = 0.0
    """z of KTO"""

    def of(self, groups: Iterable[Group], sums: Sequence[float]) -> Tally:
        """Return the tally of ``groups`` whose answers have these summed log-probabilities, group by group."""
        tally = NO_TALLY.copy()
        rest = iter(sums)
        for group in groups:
            own = [next(rest) for _ in group.answers]
            reference = group.reference or [0.0] * len(own)
            gained = [value - before for value, before in zip(own, reference, strict=True)]
            rewards = [self._reward(group, k, gain) for k, gain in enumerate(gained)]
            for liked, *each in zip(group.liked, rewards, own, gained, strict=True):
                tally[_CHOSEN if liked else _REJECTED] += (1, *each)
            bound = rewards[1] if len(own) == 2 else self.preference.beta * self.shift
            above = (float(np.sign(rewards[0] - bound)) + 1) / 2
            tally[_COMPARED] += (1, above if group.liked[0] else 1 - above)
        return tally

    def _reward(self, group: Group, answer: int, gained: float) -> float:
        if self.preference.method in BY_LENGTH:
            gained /= group.answers[answer].supervised
        return self.preference.beta * gained

    def figures(self, tally: Tally) -> dict[str, float]:
        """Return the figures by name; what a step has no answer for is left out."""
        told: dict[str, float] = {}
        for name, (count, rewards, logps, gained) in (("chosen", tally[_CHOSEN]), ("rejected", tally[_REJECTED])):
            if count:
                told[f"rewards/{name}"], told[f"logps/{name}"] = float(rewards / count), float(logps / count)
            if count and name == "chosen" and self.preference.has_reference:
                told["logps/chosen_gain"] = float(gained / count)
        if "rewards/chosen" in told and "rewards/rejected" in told:
            told["rewards/margins"] = told["rewards/chosen"] - told["rewards/rejected"]
        compared, right = tally[_COMPARED]
        if compared:
            told["rewards/accuracies"] = float(right / compared)
        if self.preference.method == "kto":
            told["kl"] = self.shift
        return told
