"""Confidence intervals of 95 % for a share, and for how a share changed over the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Change:
    """How a share changed from one model to another that was asked the same questions; all numbers from -1 to 1."""

    value: float
    low: float
    high: float


def share_interval(successes: float, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval (Wilson 1927) of the share ``successes / trials``, half successes included.

    Raises ValueError without trials.
    """
    if trials < 1:
        raise ValueError("a share needs at least one trial")
    share, square = successes / trials, _Z**2
    spread = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    centre, scale = share + square / (2 * trials), 1 + square / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)  # rounding can pass the ends


def paired_change(before: Sequence[bool], after: Sequence[bool]) -> Change:
    """Return the change of the share of true values, with the adjusted interval for pairs of Agresti and Min (2005).

    Both sequences answer the same questions in the same order. Raises ValueError if they are empty or differ in length.
    """
    if not before:
        raise ValueError("a change needs at least one pair")
    pairs = list(zip(before, after, strict=True))
    gained = sum(new and not old for old, new in pairs)
    lost = sum(old and not new for old, new in pairs)
    trials = len(pairs) + 2
    centre = (gained - lost) / trials
    spread = _Z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / trials) / trials
    return Change((gained - lost) / len(pairs), max(-1.0, centre - spread), min(1.0, centre + spread))
