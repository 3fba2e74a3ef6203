"""A first rate falls with the width and the length of a run, and allows for what else makes an adapter strong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.recipe.first_rate import HIGHEST, first_rate, strength_of
from weitune.recipe.load import build_recipe

widths, steps = st.integers(32, 20_000), st.integers(1, 10**6)


@given(widths, widths, steps, steps)
def test_it_falls_with_width_and_steps(width: int, other_width: int, count: int, other_count: int) -> None:
    wide, narrow = max(width, other_width), min(width, other_width)
    long, short = max(count, other_count), min(count, other_count)
    assert 0 < first_rate(wide, long) <= first_rate(narrow, short) <= HIGHEST


@given(widths, steps)
def test_a_whole_model_gets_a_tenth(width: int, count: int) -> None:
    assert first_rate(width, count, whole_model=True) == pytest.approx(first_rate(width, count) / 10, rel=0.01)


@pytest.mark.parametrize(
    ("width", "count", "rate"),
    [(2048, 1000, 5e-4), (3584, 699, 3.2e-4), (896, 219, 9.5e-4), (576, 60, 1.7e-3), (576, 15, 3.5e-3)],
)
def test_what_it_says_of_known_models(width: int, count: int, rate: float) -> None:
    assert first_rate(width, count) == rate


@pytest.mark.parametrize(
    ("keys", "strength"),
    [
        ({}, 1.0),
        ({"lora.r": 64}, 1.0),
        ({"lora.alpha": 16}, 0.5),
        ({"lora.plus_ratio": 8}, 8.0),
        ({"lora.r": 16, "lora.rslora": True}, 4.0),
        ({"lora": "none"}, 1.0),
    ],
)
def test_a_strong_adapter_gets_a_lower_rate(keys: dict[str, object], strength: float) -> None:
    found = strength_of(build_recipe({"model": "m", "data": "d"}, keys))
    assert found == strength
    assert first_rate(2048, 1000, strength=found) == pytest.approx(5e-4 / strength, rel=0.05)
