"""The same recipe gives the same bits; threads and the split of a step change them by rounding only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.runs import Inputs, assert_same_result
from weitune.run.events import read_events
from weitune.training.run import resume, train


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in read_events(run) if event["event"] == "step"]


def run_of(inputs: Inputs, output: Path, **overrides: Any) -> Path:
    return train(inputs.recipe(output, **overrides), device="cpu").path


def test_twice_the_same_bits(inputs: Inputs, tmp_path: Path) -> None:
    assert_same_result(run_of(inputs, tmp_path / "again"), inputs.undisturbed)


def test_another_seed_is_another_run(inputs: Inputs, tmp_path: Path) -> None:
    """So that the equalities here are not those of constants."""
    other = run_of(inputs, tmp_path / "other", **{"train.seed": 43})
    assert losses(other) != pytest.approx(losses(inputs.undisturbed), rel=1e-3)


def test_one_thread_or_two(inputs: Inputs, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        two = run_of(inputs, tmp_path / "two")
    finally:
        torch.set_num_threads(1)
    assert losses(two) == pytest.approx(losses(inputs.undisturbed), rel=1e-5)


@pytest.mark.parametrize("micro_tokens", [1, 60, 10_000])
def test_without_dropout_any_split_of_a_step(inputs: Inputs, tmp_path: Path, micro_tokens: int) -> None:
    whole = run_of(inputs, tmp_path / "whole", **{"lora.dropout": 0.0})
    split = run_of(inputs, tmp_path / "split", **{"lora.dropout": 0.0, "train.micro_tokens": micro_tokens})
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)


def test_another_split_from_the_middle_on(inputs: Inputs, tmp_path: Path) -> None:
    short = {"lora.dropout": 0.0, "train.epochs": 1, "train.schedule": "constant"}
    run = run_of(inputs, tmp_path / "run", **short)
    resume(run, overrides={"train.epochs": 2, "train.micro_tokens": 40}, device="cpu")
    whole = run_of(inputs, tmp_path / "whole", **{**short, "train.epochs": 2})
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
