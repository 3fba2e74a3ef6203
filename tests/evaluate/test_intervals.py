"""Intervals against published and simulated values."""

from __future__ import annotations

import random

import pytest

from weitune.evaluate.intervals import paired_change, share_interval


def test_wilson_gives_the_published_interval() -> None:
    # Newcombe (1998), table I: 81 of 263 and 0 of 20, method 3
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert share_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_a_change_is_the_difference_of_the_shares() -> None:
    before, after = [True, True, False, False], [True, False, False, False]
    change = paired_change(before, after)
    assert change.value == -0.25
    assert change.low < change.value < change.high


def test_equal_answers_have_no_change_but_an_interval() -> None:
    change = paired_change([True, False] * 50, [True, False] * 50)
    assert change.value == 0
    assert change.low == pytest.approx(-change.high)
    assert 0 < change.high < 0.03


def test_the_interval_holds_the_true_change_in_about_95_of_100_samples() -> None:
    draw = random.Random(0)
    held = 0
    for _ in range(500):
        before = [draw.random() < 0.7 for _ in range(200)]
        after = [draw.random() < (0.8 if old else 0.2) for old in before]  # truly 0.62 after 0.7
        change = paired_change(before, after)
        held += change.low <= -0.08 <= change.high
    assert 0.92 <= held / 500 <= 0.98


@pytest.mark.parametrize("call", [lambda: share_interval(0, 0), lambda: paired_change([], [])])
def test_nothing_has_no_interval(call: object) -> None:
    with pytest.raises(ValueError, match="at least one"):
        call()  # type: ignore[operator]
