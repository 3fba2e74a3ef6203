"""A first rate falls with the width and the length of a run, and allows for what else makes an adapter strong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.recipe.first_rate import HIGHEST, first_rate, strength_of
from weitune.recipe.load import build_recipe

Run = tuple[int, int, float]
widths, steps, passes = st.integers(32, 20_000), st.integers(1, 10**6), st.floats(0.1, 100)


@given(st.tuples(widths, steps, passes), st.tuples(widths, steps, passes))
def test_it_falls_with_width_steps_and_passes(some: Run, others: Run) -> None:
    (wide, narrow), (long, short), (often, seldom) = (
        sorted(pair, reverse=True) for pair in zip(some, others, strict=True)
    )
    assert 0 < first_rate(wide, long, often) <= first_rate(narrow, short, seldom) <= HIGHEST  # type: ignore[arg-type]


@given(st.integers(100, 20_000), st.integers(100, 10**6), passes)
def test_a_whole_model_gets_a_tenth(width: int, count: int, often: float) -> None:
    whole = first_rate(width, count, often, whole_model=True)
    assert whole == pytest.approx(first_rate(width, count, often) / 10, rel=0.06)
    assert first_rate(width, 5, often, whole_model=True) == whole


@pytest.mark.parametrize(
    ("width", "count", "often", "rate"),
    [
        (2048, 1000, 1, 5e-4),
        (3584, 699, 3, 1.1e-4),
        (896, 219, 1, 9.5e-4),
        (576, 60, 5.5, 3.2e-4),
        (576, 15, 1, 3.5e-3),
    ],
)
def test_what_it_says_of_known_models(width: int, count: int, often: float, rate: float) -> None:
    assert first_rate(width, count, often) == rate


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
