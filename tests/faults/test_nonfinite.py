"""A number that is not finite ends the run within its step, before the weights change; what was good stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.faults.injection import Kind, bad_gradient, bad_loss, bad_weight, inject
from tests.faults.runs import EVERY, STEPS, Inputs, Listener, assert_same_result
from weitune.errors import NonFiniteError
from weitune.model.supervised import SupervisedModel
from weitune.run.checkpoint import list_checkpoints, newest_good
from weitune.run.events import read_events
from weitune.training.run import resume, train


@pytest.mark.parametrize("step", [1, EVERY + 1, STEPS])
@pytest.mark.parametrize(
    ("kind", "bad", "told"),
    [
        (bad_loss, float("nan"), "nan"), (bad_loss, float("inf"), "inf"), (bad_gradient, float("nan"), "nan"),
        (bad_gradient, float("-inf"), "nan"), (bad_weight, float("nan"), "nan"),
    ],
    ids=["loss nan", "loss inf", "gradient nan", "gradient inf", "weight nan"],
)  # fmt: skip
def test_stops_within_the_step(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, bad: float, told: str, step: int
) -> None:
    run = tmp_path / "run"
    listener = Listener()
    inject(monkeypatch, kind, step, bad)
    with pytest.raises(NonFiniteError) as caught:
        train(inputs.recipe(run), reporter=listener, device="cpu")
    assert caught.value.exit_code == 3
    assert f"step {step} is not finite" in str(caught.value)
    assert str(caught.value).count("data.json") == (2 if step in {7, 14} else 3)  # the examples of the step, by row
    events = list(read_events(run))
    assert events[-1]["event"] == "not finite"
    assert events[-1]["step"] == step
    assert told in {events[-1]["loss"], events[-1]["grad_norm"]}
    assert [record.step for record in listener.records] == list(range(1, step))
    found, faulty = newest_good(run)
    assert (found.step if found else 0) == (step - 1) // EVERY * EVERY
    assert not faulty
    monkeypatch.undo()
    resume(run, device="cpu")  # the fault was the machine's, and is gone
    assert_same_result(run, inputs.undisturbed)
    assert [e["step"] for e in read_events(run) if e["event"] == "not finite"] == [step]


def test_weights_that_break_after_a_step_make_no_checkpoint(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step was fine, and a checkpoint is due: it is not written with bad numbers in it."""
    run = tmp_path / "run"
    found: list[SupervisedModel] = []
    forward = SupervisedModel.forward

    def remembered(self: SupervisedModel, row: Any) -> Tensor:
        found[:] = [self]
        return forward(self, row)

    def corrupt() -> None:
        with torch.no_grad():
            next(p for p in found[0].parameters() if p.requires_grad)[0, 0] = float("nan")

    monkeypatch.setattr(SupervisedModel, "forward", remembered)
    listener = Listener(after={2 * EVERY: corrupt})
    with pytest.raises(NonFiniteError, match="after step 8, numbers are not finite in 1 of the tensors"):
        train(inputs.recipe(run), reporter=listener, device="cpu")
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [EVERY]
    resume(run, device="cpu")
    assert_same_result(run, inputs.undisturbed)
