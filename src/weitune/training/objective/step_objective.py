"""What a step of training minimises: how its passes are weighed, and what is told of them.

    items of a step ─▶ Objective.begin ─▶ StepObjective ─▶ weighed(pass) ─▶ loss of the pass ─▶ Σ / divisor
                                                        └─ took(pass, result) ─▶ figures

The default, :class:`TokenMean`, is supervised training: the mean cross entropy over all learned tokens of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from weitune.data.pack import PackedBatch
from weitune.data.pad import PaddedBatch

Laid = PackedBatch | PaddedBatch
PassResult = Tensor | tuple[Tensor, Tensor]
"""The loss of a pass, and of groups also the summed log-probabilities of their answers, (S,); float64, on the CPU."""


class StepObjective(Protocol):
    """The objective of one step."""

    @property
    def divisor(self) -> float:
        """What the sum of the losses of all passes, on all devices, is divided by."""

    def weighed(self, laid: Laid, items: Sequence[Any]) -> Laid:
        """Return a laid-out pass over ``items`` with the numbers that its loss depends on."""

    def took(self, items: Sequence[Any], result: PassResult) -> Tensor:
        """Take note of the result of a pass over ``items`` and return its loss."""

    def figures(self) -> Mapping[str, float]:
        """Return what is told of the step besides its loss; every process of a run must ask."""


class Objective(Protocol):
    """What training minimises."""

    def begin(self, step: int, items: Sequence[Any]) -> StepObjective:
        """Return the objective of ``step`` (from 0) with these ``items``, on all devices."""


@dataclass(frozen=True, slots=True)
class _TokenMeanOfStep:
    divisor: float

    def weighed(self, laid: Laid, items: Sequence[Any]) -> Laid:
        return laid

    def took(self, items: Sequence[Any], result: PassResult) -> Tensor:
        assert isinstance(result, Tensor)  # noqa: S101  (for mypy)
        return result

    def figures(self) -> Mapping[str, float]:
        return {}


@dataclass(frozen=True, slots=True)
class TokenMean:
    """The mean cross entropy over the learned tokens of a step, each by its weight."""

    def begin(self, step: int, items: Sequence[Any]) -> StepObjective:
        return _TokenMeanOfStep(sum(item.weight for item in items))


SUPERVISED = TokenMean()
"""Training on examples."""
