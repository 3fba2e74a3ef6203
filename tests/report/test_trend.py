"""Smoothing takes noise away and does not lag."""

from __future__ import annotations

import random

import pytest

from weitune.report.trend import trend


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 42, 300])
def test_a_straight_curve_stays_as_it_is(count: int) -> None:
    points = [(float(x), 5 - x / 20) for x in range(1, count + 1)]
    assert [x for x, _ in trend(points)] == [x for x, _ in points]
    assert [y for _, y in trend(points)] == pytest.approx([y for _, y in points])


def test_noise_becomes_smaller() -> None:
    noise = random.Random(0)
    points = [(float(x), noise.gauss(0, 1)) for x in range(200)]
    before, after = (sum(y * y for _, y in curve) for curve in (points, trend(points)))
    assert after < before / 5


def test_steps_that_are_all_the_same_have_their_mean() -> None:
    assert trend([(1.0, 2.0), (1.0, 4.0)]) == [(1.0, 3.0), (1.0, 3.0)]
    assert trend([]) == []
