"""Charts have few round ticks, and keep the extremes of long curves."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise

import pytest

from weitune.report.chart import Line, chart, thinned, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (4.31, 5.87), (0, 702), (1e-5, 1e-4), (-3, 7), (99.9, 100.1)])
def test_ticks_are_few_and_round_and_lie_around(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    gaps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
    assert gaps == {1.0}
    assert found[1] > low
    assert found[-2] < high
    below = ticks(low, high, above=False)
    assert below == found[: len(below)]
    assert high - (found[1] - found[0]) - 1e-9 <= below[-1] <= high + 1e-9


def test_one_value_is_one_tick() -> None:
    assert ticks(3.0, 3.0) == [3.0]
    assert "<svg" in chart("flat", [Line("a", [(1, 3.0)])])


def test_the_edges_of_a_chart_are_ticks() -> None:
    draw = random.Random(1)
    for _ in range(300):
        low, span = draw.uniform(-5, 5), 10 ** draw.uniform(-4, 3)
        points = [(float(x), low + span * draw.random()) for x in range(1, draw.randrange(2, 60))]
        html = chart("title", [Line("a", points)])
        lines = re.findall(r'class="grid" x1="0" x2="100%" y1="([^"]+)"', html)
        assert (lines[0], lines[-1]) == ("100.00%", "0.00%"), points
        assert 2 <= len(lines) <= 8, points
        assert '<text class="tick" x="0.00%" y="100%"' in html or len(points) == 1


def test_no_points_no_chart() -> None:
    assert chart("empty", [Line("a", [])]) == ""


def test_thinning_keeps_the_extremes() -> None:
    points = [(float(x), math.sin(x / 50)) for x in range(10_000)]
    points[7777] = (7777.0, 9.0)
    kept = thinned(points)
    assert len(kept) <= 500
    assert (7777.0, 9.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
