"""The smoothed curve of a noisy one, without lag.

Each point lies on the line of least squares through its neighbours on both sides (LOESS of degree 1 with equal
weights; Cleveland 1979). A straight curve stays as it is, at its ends too, where an average of the past lags behind.
"""

from __future__ import annotations

from collections.abc import Sequence

_MOST_NEIGHBOURS = 15
"""On each side."""
_SHARE = 10
"""A tenth of the points on each side."""


def trend(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return (x, smoothed y) for each (x, y) of ``points``, which are in the order of x."""
    half = max(2, min(_MOST_NEIGHBOURS, len(points) // _SHARE))
    return [(x, _on_line(points[max(0, k - half) : k + half + 1], x)) for k, (x, _) in enumerate(points)]


def _on_line(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the value at ``x`` of the line of least squares through ``points``."""
    mean_x = sum(a for a, _ in points) / len(points)
    mean_y = sum(b for _, b in points) / len(points)
    spread = sum((a - mean_x) ** 2 for a, _ in points)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in points) / spread if spread else 0.0
    return mean_y + slope * (x - mean_x)
