"""An adapter that is small for its data, and rows that will be known by heart, are named with numbers and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.runs import make_inputs
from weitune.forecast.capacity import PASSES_BY_HEART, by_heart_note, room_note
from weitune.training.run_plan import plan_run


@pytest.mark.parametrize(("parameters", "rank", "tokens", "enough"), [(1000, 8, 2001, 16), (1000, 8, 9000, 64)])
def test_a_small_adapter_gets_a_rank_that_holds_the_data(parameters: int, rank: int, tokens: int, enough: int) -> None:
    assert room_note(parameters, rank, 2 * parameters) == ""
    note = room_note(parameters, rank, tokens)
    assert f"{tokens:,} learned tokens" in note
    assert f"lora.r {enough} holds them" in note
    assert room_note(parameters * enough // rank, enough, tokens) == ""
    assert room_note(parameters * enough // rank // 2, enough // 2, tokens) != ""


def test_rows_are_known_by_heart_after_many_passes_if_there_is_room() -> None:
    often = PASSES_BY_HEART
    assert by_heart_note(10_000, 50, 2000, often - 0.1) == ""
    assert by_heart_note(900, 50, 2000, often) == ""
    note = by_heart_note(10_000, 50, 2000, often)
    assert f"50 rows are learned {often:.1f} times" in note
    assert "train.epochs" in note


def test_a_plan_says_so(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    by_heart = "20 rows are learned 30.0 times"
    often = plan_run(inputs.recipe(tmp_path / "run", **{"train.epochs": 30}), device="cpu")
    once = plan_run(inputs.recipe(tmp_path / "run", **{"train.epochs": 1}), device="cpu")
    assert any(by_heart in note for note in often.notes)
    assert not any("word by word" in note or "small for the data" in note for note in once.notes)
    assert any(by_heart in note for note in often.to_json()["notes"])
