"""A warm-up that takes most of a short run is said, and changes no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Inputs, Listener, make_inputs
from weitune import cli
from weitune.recipe.schema import Train
from weitune.run.events import read_events
from weitune.training.optim import learning_rate, warmup_note
from weitune.training.run import train


def rates_of_transformers(steps: int, settings: Train) -> list[float]:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    warmup = -(-int(steps * settings.warmup_ratio * 10**9) // 10**9)
    scheduler = get_scheduler(settings.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "ratio"), [(1, 0.5), (1, 0.25), (2, 1.0), (3, 0.25), (8, 0.5), (40, 0.125)])
def test_the_note_says_what_the_rates_are(steps: int, ratio: float, schedule: Any) -> None:
    settings = Train(warmup_ratio=ratio, schedule=schedule)
    rates = [learning_rate(step, steps, settings) for step in range(steps)]
    if schedule != "constant":  # transformers' has another name with a warm-up
        assert rates == pytest.approx(rates_of_transformers(steps, settings))
    assert ("nothing will be learned" in warmup_note(steps, settings)) == (not any(rates))


@pytest.mark.parametrize(
    ("steps", "ratio", "told"),
    [
        (
            1,
            0.03,
            "train.warmup_ratio 0.03 of 1 step leaves no step with a learning rate above 0: nothing will be learned",
        ),
        (3, 0.03, "train.warmup_ratio 0.03 makes 1 of 3 steps a warm-up, at learning rate 0"),
        (10, 0.03, "makes 1 of 10 steps a warm-up,"),
        (2000, 0.6, "train.warmup_ratio 0.6 makes 1,200 of 2,000 steps a warm-up, the first"),
        (1, 0.0, ""),
        (11, 0.03, ""),
        (100, 0.1, ""),
    ],
)
def test_large_warmups_are_said(steps: int, ratio: float, told: str) -> None:
    note = warmup_note(steps, Train(warmup_ratio=ratio))
    assert note.startswith(told) if told.startswith("train") else told in note
    assert bool(note) == bool(told)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("warmup") / "inputs")


SHORT = {"train.batch_size": 20, "train.epochs": 1, "train.warmup_ratio": 0.03}


def test_training_says_it_at_its_start_and_in_its_events(inputs: Inputs, tmp_path: Path) -> None:
    listener = Listener()
    run = train(inputs.recipe(tmp_path / "run", **SHORT), reporter=listener, device="cpu").path
    assert "nothing will be learned" in listener.text
    first = next(read_events(run))
    assert first["event"] == "start"
    assert any("nothing will be learned" in line for line in first["notes"])
    assert [event["learning_rate"] for event in read_events(run) if event["event"] == "step"] == [0.0]


def test_plan_says_it(inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(inputs.model), "--data", str(inputs.data), "--device", "cpu"]
    for name, value in SHORT.items():
        options += [f"--{name}", str(value)]
    assert cli.main(["plan", *options]) == 0
    assert "nothing will be learned" in capsys.readouterr().out
    assert cli.main(["plan", *options, "--json"]) == 0
    assert "nothing will be learned" in capsys.readouterr().out
