"""A run that was stopped and goes on ends with the same bits as one that was not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.damage import Damage, cut, flip, lose
from tests.faults.runs import EVERY, STEPS, Inputs, Listener, assert_same_result, digest
from tests.faults.small import FILES
from weitune.errors import Interrupted, RunError
from weitune.files.json_files import json_bytes, json_object
from weitune.recipe.load import load_recipe
from weitune.report.run_record import RunRecord
from weitune.run.checkpoint import list_checkpoints
from weitune.run.events import read_events
from weitune.run.names import EVENTS, MANIFEST, OUTCOME
from weitune.training.run import resume, train
from weitune.training.signals import StopRequest


def stopped(inputs: Inputs, output: Path, step: int, **overrides: Any) -> Path:
    """Return the folder of a run that was asked to stop during ``step``."""
    stop = StopRequest()
    listener = Listener(after={step: lambda: stop.stop("a test")})
    with pytest.raises(Interrupted, match=f"after step {step}; continue with `weitune train --resume {output}`"):
        train(inputs.recipe(output, **overrides), reporter=listener, device="cpu", stop=stop)
    assert list_checkpoints(output)[-1].step == step
    return output


@pytest.mark.parametrize("step", [1, 3, EVERY, 9, STEPS - 1])
def test_stopped_once(inputs: Inputs, tmp_path: Path, step: int) -> None:
    run = stopped(inputs, tmp_path / "run", step)
    listener = Listener()
    resume(run, reporter=listener, device="cpu")
    assert [record.step for record in listener.records] == list(range(step + 1, STEPS + 1))
    assert_same_result(run, inputs.undisturbed)


def test_stopped_again_and_again(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 2)
    for step in (3, 7, 12):
        stop = StopRequest()
        listener = Listener(after={step: lambda: stop.stop("a test")})  # noqa: B023
        with pytest.raises(Interrupted):
            resume(run, reporter=listener, device="cpu", stop=stop)
    resume(run, device="cpu")
    assert_same_result(run, inputs.undisturbed)
    stops = [event["step"] for event in read_events(run) if event["event"] == "stop"]
    assert stops == [2, 3, 7, 12]


def test_stopped_during_the_last_step_it_is_complete(inputs: Inputs, tmp_path: Path) -> None:
    stop = StopRequest()
    listener = Listener(after={STEPS: lambda: stop.stop("a test")})
    run = train(inputs.recipe(tmp_path / "run"), reporter=listener, device="cpu", stop=stop).path
    assert_same_result(run, inputs.undisturbed)


def test_without_any_checkpoint_it_begins_again(inputs: Inputs, tmp_path: Path) -> None:
    """As when it was killed between the making of its folder and its first checkpoint."""
    run = stopped(inputs, tmp_path / "run", 3)
    shutil.rmtree(run / "checkpoint-3")
    listener = Listener()
    resume(run, reporter=listener, device="cpu")
    assert listener.records[0].step == 1
    assert_same_result(run, inputs.undisturbed)


def test_what_it_repeats_from_the_beginning_is_told_once(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 3, **{"validation": 0.3, "train.evaluate_every": 2})
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "checkpoint-3")
    resume(run, device="cpu")
    told = [event["step"] for event in read_events(run) if event["event"] == "validation"]
    assert told[0] == 0
    assert told == sorted(set(told))


@pytest.mark.parametrize(
    ("file", "damage"),
    [(FILES[0], cut), (FILES[1], flip), (FILES[2], lose), (FILES[3], cut), (MANIFEST, lose)],
    ids=[*FILES, MANIFEST],
)
def test_past_a_damaged_checkpoint(inputs: Inputs, tmp_path: Path, file: str, damage: Damage) -> None:
    run = stopped(inputs, tmp_path / "run", 6)
    damage(run / "checkpoint-6" / file, random.Random(1))
    listener = Listener()
    resume(run, reporter=listener, device="cpu")
    assert f"checkpoint-6 is passed over and now named checkpoint-6.damaged: {file}" in listener.text
    assert listener.records[0].step == EVERY + 1
    assert (run / "checkpoint-6.damaged").is_dir()
    assert_same_result(run, inputs.undisturbed)


def test_free_changes_change_no_bit(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 5)
    listener = Listener()
    changed = {"train.checkpoint_every": 3, "train.keep_checkpoints": 1, "train.log_every": 2}
    resume(run, overrides=changed, reporter=listener, device="cpu")
    assert_same_result(run, inputs.undisturbed)
    assert "train.checkpoint_every: 3 instead of 4" in listener.text
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [STEPS]
    assert load_recipe(str(run / "recipe.yaml")).train.checkpoint_every == 3


def test_model_data_and_run_may_move(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 5).rename(tmp_path / "moved")
    shutil.copytree(inputs.model, tmp_path / "model")
    shutil.copy(inputs.data, tmp_path / "renamed.json")
    resume(run, overrides={"model": str(tmp_path / "model"), "data": [str(tmp_path / "renamed.json")]}, device="cpu")
    assert (run / "adapter" / FILES[1]).read_bytes() == (inputs.undisturbed / "adapter" / FILES[1]).read_bytes()


def test_more_epochs_are_as_if_asked_for_at_once(inputs: Inputs, tmp_path: Path) -> None:
    """With a schedule that does not look at the end."""
    constant = {"train.schedule": "constant"}
    short = train(inputs.recipe(tmp_path / "short", **{**constant, "train.epochs": 1}), device="cpu").path
    resume(short, overrides={"train.epochs": 2}, device="cpu")
    long = train(inputs.recipe(tmp_path / "long", **constant), device="cpu").path
    assert digest(short / "adapter") == digest(long / "adapter")
    assert load_recipe(str(short / "recipe.yaml")).train.epochs == 2


class TestComplete:
    def test_stays_as_it_is(self, inputs: Inputs, tmp_path: Path) -> None:
        run = Path(shutil.copytree(inputs.undisturbed, tmp_path / "run"))
        before, listener = digest(run), Listener()
        assert resume(run, reporter=listener, device="cpu").path == run
        assert "the run is complete after 14 steps" in listener.text
        assert digest(run) == before
        assert not listener.records

    def test_an_adapter_that_is_missing_or_broken_is_made_again(self, inputs: Inputs, tmp_path: Path) -> None:
        """As when it was killed between the last checkpoint and the adapter."""
        run = Path(shutil.copytree(inputs.undisturbed, tmp_path / "run"))
        shutil.rmtree(run / "adapter")
        resume(run, device="cpu")
        assert digest(run / "adapter") == digest(inputs.undisturbed / "adapter")
        flip(run / "adapter" / FILES[1], random.Random(2))
        resume(run, device="cpu")
        assert digest(run / "adapter") == digest(inputs.undisturbed / "adapter")

    def test_less_than_it_has_done_is_refused(self, inputs: Inputs, tmp_path: Path) -> None:
        run = Path(shutil.copytree(inputs.undisturbed, tmp_path / "run"))
        with pytest.raises(RunError, match="has done 14 steps, and its recipe now asks for 7 in all"):
            resume(run, overrides={"train.epochs": 1}, device="cpu")


def test_an_end_that_a_kill_came_before_is_recorded_once(inputs: Inputs, tmp_path: Path) -> None:
    run = shutil.copytree(inputs.undisturbed, tmp_path / "run")
    lines = (run / EVENTS).read_text(encoding="utf-8").splitlines(keepends=True)
    assert '"end"' in lines[-1]
    (run / EVENTS).write_text("".join(lines[:-1]), encoding="utf-8")
    (run / OUTCOME).write_text('{"state": "running"}')
    shutil.rmtree(run / "adapter")
    recorded = load_recipe(str(run / "recipe.yaml"))
    for _ in range(2):
        resume(run, device="cpu")
        assert load_recipe(str(run / "recipe.yaml")) == recorded
        assert [event["adapter_step"] for event in read_events(run) if event["event"] == "end"] == [STEPS]
        assert json_object(run / OUTCOME)["state"] == "finished"
        assert RunRecord.read(run).finished
    assert_same_result(run, inputs.undisturbed)


def test_a_run_that_max_steps_ended_names_that_key(inputs: Inputs, tmp_path: Path) -> None:
    run = train(inputs.recipe(tmp_path / "run", **{"train.max_steps": 2}), device="cpu").path
    listener = Listener()
    resume(run, device="cpu", reporter=listener)
    assert "complete after 2 steps; to continue, raise train.max_steps" in listener.text


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run to resume: it has no recipe\.yaml"):
        resume(tmp_path)


def test_a_kill_between_the_end_and_its_outcome_is_recorded_afterwards(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(inputs.undisturbed, run)
    left = json_object(run / OUTCOME)
    (run / OUTCOME).write_bytes(json_bytes({**left, "state": "running", "exit_code": None}))
    (run / "report.html").unlink(missing_ok=True)
    resume(run, device="cpu")
    assert json_object(run / OUTCOME)["state"] == "finished"
    assert json_object(run / OUTCOME)["step"] == STEPS
    assert (run / "report.html").is_file()
    assert_same_result(run, inputs.undisturbed)
    assert [event["event"] for event in read_events(run)].count("end") == 1
