"""Which checkpoint is the best one: the one definition for training, rotation, `--checkpoint best` and reports.

The best is the one with the lowest finite validation loss, and the first of equals. A loss that is missing or not
finite is never the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def best_of(losses: Iterable[tuple[int, object]]) -> tuple[int, float] | None:
    """Return step and loss of the best of (step, loss), in any order; None if no loss is a finite number."""
    measured = [(step, loss) for step, value in losses if (loss := finite(value)) is not None]
    return min(measured, key=lambda pair: (pair[1], pair[0]), default=None)


def finite(value: object) -> float | None:
    """Return ``value`` if it is a finite number, and None if it is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
