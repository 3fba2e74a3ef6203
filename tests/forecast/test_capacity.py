"""An adapter that is small for its data, and rows that will be known by heart, are named with numbers and a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import make_inputs
from weitune.forecast.capacity import PASSES_BY_HEART, PASSES_WITHOUT, by_heart_note, room_note
from weitune.recipe.first_rate import HIGHEST
from weitune.training.run_plan import plan_run

RATE = 1e-3


@pytest.mark.parametrize(("parameters", "rank", "tokens", "enough"), [(1000, 8, 2001, 16), (1000, 8, 9000, 64)])
def test_a_small_adapter_gets_a_rank_that_holds_the_data(parameters: int, rank: int, tokens: int, enough: int) -> None:
    assert room_note(parameters, rank, 2 * parameters) == ""
    note = room_note(parameters, rank, tokens)
    assert f"{tokens:,} learned tokens" in note
    assert f"lora.r {enough} holds them" in note
    assert room_note(parameters * enough // rank, enough, tokens) == ""
    assert room_note(parameters * enough // rank // 2, enough // 2, tokens) != ""


@pytest.mark.parametrize("times", [0.5, 1, 3])
def test_rows_are_known_by_heart_after_many_passes_the_sooner_the_higher_the_rate(times: float) -> None:
    often = PASSES_BY_HEART / times
    assert by_heart_note(10_000, 2000, 50, often - 0.1, times * RATE, RATE) == ""
    note = by_heart_note(10_000, 2000, 50, often + 0.1, times * RATE, RATE)
    assert f"50 rows are learned {often + 0.1:.1f} times each at a rate of {times * RATE:g}" in note
    assert f"train.epochs to {int(PASSES_WITHOUT / times)} " in note


def test_what_has_no_room_or_is_seen_once_is_not_known_by_heart() -> None:
    assert by_heart_note(999, 2000, 50, 60, RATE, RATE) == ""
    assert by_heart_note(10_000, 2000, 50, 1, 100 * RATE, RATE) == ""


def test_a_plan_says_so_and_what_it_advises_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(tmp_path / "inputs")

    def notes(**keys: Any) -> str:
        recipe = inputs.recipe(tmp_path / "run", **{"lora.r": 64, **keys})
        return "\n".join(plan_run(recipe, device="cpu").to_json()["notes"])

    often = notes(**{"train.epochs": 30})
    assert "20 rows are learned 30.0 times each at a rate of 0.01" in often
    assert "word by word" not in notes(**{"train.epochs": 2})
    assert "word by word" not in notes(**{"train.epochs": 30, "train.learning_rate": "auto"})
    epochs, rate = (often.split(f"train.{key} to ")[1].split()[0].strip(",") for key in ("epochs", "learning_rate"))
    assert "word by word" not in notes(**{"train.epochs": int(epochs)})
    assert "word by word" not in notes(**{"train.epochs": 30, "train.learning_rate": float(rate)})
    monkeypatch.setattr("weitune.forecast.capacity.BITS_OF_A_TOKEN", 1e4)
    assert "small for the data" in notes()


def test_a_plan_names_the_rate_that_training_will_choose(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    plan = plan_run(inputs.recipe(tmp_path / "run", **{"train.learning_rate": "auto"}), device="cpu")
    rate = plan.to_json()["learning_rate"]
    assert plan.recipe.train.rate == rate == HIGHEST  # so narrow a model, and 14 steps
    assert f"train.learning_rate auto: {rate:g}, for a model 64 wide and 14 steps" in plan.notes
