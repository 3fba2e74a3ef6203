"""The losses of a run over its steps: the best checkpoint, and the moving average.

The best checkpoint has the lowest finite validation loss; of equal ones, it is the first. Training, rotation,
``--checkpoint best`` and reports all use this definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

_SMOOTHING = 0.9


def best_of(losses: Iterable[tuple[int, object]]) -> tuple[int, float] | None:
    """Return step and loss of the best of (step, loss), in any order; None if no loss is a finite number."""
    measured = [(step, loss) for step, value in losses if (loss := finite(value)) is not None]
    return min(measured, key=lambda pair: (pair[1], pair[0]), default=None)


class MovingAverage:
    """An exponential moving average without bias towards its start: the weights 0.9^k are normalised."""

    def __init__(self) -> None:
        self._total = self._weight = 0.0

    def add(self, value: object) -> None:
        if isinstance(value, int | float):
            self._total = _SMOOTHING * self._total + value
            self._weight = _SMOOTHING * self._weight + 1

    @property
    def value(self) -> float | None:
        """The average; None before the first number."""
        return self._total / self._weight if self._weight else None


def finite(value: object) -> float | None:
    """Return ``value`` if it is a finite number, and None if it is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
