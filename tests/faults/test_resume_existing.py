"""``--resume-existing``: one command that starts a run or goes on with it, started again as often as one likes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.processes import steps_done
from tests.faults.runs import STEPS, Inputs, Listener, assert_same_result, digest
from tests.faults.test_lock import holder
from tests.faults.test_resume import stopped
from tests.tiny import save_tiny
from weitune import cli
from weitune.errors import RecipeError, RunError
from weitune.run.events import read_events
from weitune.training.distributed.processes import agreed
from weitune.training.run import train


def again(inputs: Inputs, run: Path, **overrides: Any) -> Listener:
    listener = Listener()
    train(inputs.recipe(run, **overrides), resume_existing=True, reporter=listener, device="cpu")
    return listener


def test_it_starts_where_there_is_nothing(inputs: Inputs, tmp_path: Path) -> None:
    again(inputs, tmp_path / "run")
    assert_same_result(tmp_path / "run", inputs.undisturbed)


@pytest.mark.parametrize("left", [(), (".lock",), (".run.17.partial", ".checkpoint-4.outdated", ".lock")])
def test_it_starts_where_there_are_only_leftovers(inputs: Inputs, tmp_path: Path, left: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in left:
        if name.endswith(".lock"):
            (run / name).write_text("")
        else:
            (run / name).mkdir()
            (run / name / "state.json").write_text("{}")
    again(inputs, run)
    assert_same_result(run, inputs.undisturbed)
    assert {path.name for path in run.glob(".*")} == {".lock"}


def test_it_goes_on_and_says_so_when_there_is_nothing_left_to_do(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 5)
    assert [record.step for record in again(inputs, run).records] == list(range(6, STEPS + 1))
    assert_same_result(run, inputs.undisturbed)
    before = digest(run / "adapter")
    done = again(inputs, run)
    assert f"the run is complete after {STEPS} steps" in done.text
    assert not done.records
    assert digest(run / "adapter") == before


def test_it_goes_on_after_a_kill_that_left_the_lock_file(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 5)
    process = holder(run)
    with pytest.raises(RunError, match="another process is training in"):
        again(inputs, run)
    process.kill()
    process.wait()
    assert "did not end properly" in again(inputs, run).text
    assert_same_result(run, inputs.undisturbed)


def test_another_run_is_refused_with_every_difference(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 5)
    before = digest(run)
    with pytest.raises(RunError) as caught:
        again(inputs, run, **{"train.learning_rate": 2e-2, "lora.r": 4, "train.keep_checkpoints": 7})
    assert "lora.r: 8 before, 4 now\n" in str(caught.value)
    assert "train.learning_rate: 0.01 before, 0.02 now\n" in str(caught.value)
    assert "keep_checkpoints:" not in caught.value.message
    assert digest(run) == before


def test_what_may_change_is_taken_from_the_recipe_given_now(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 5)
    again(inputs, run, **{"train.keep_checkpoints": 7})
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["keep_checkpoints"] == 7


def test_a_rate_that_was_chosen_stays(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = {"train.learning_rate": "auto"}
    whole = tmp_path / "whole"
    again(inputs, whole, **auto)
    run = stopped(inputs, tmp_path / "run", 5, **auto)
    chosen = yaml.safe_load((run / "recipe.yaml").read_text())["train"]["learning_rate"]
    assert isinstance(chosen, float)
    monkeypatch.setattr("weitune.training.inputs.first_rate_of", lambda *_, **__: 1.0)  # as a later version might
    assert [record.step for record in again(inputs, run, **auto).records] == list(range(6, STEPS + 1))
    assert_same_result(run, whole)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["learning_rate"] == chosen
    with pytest.raises(RunError, match=r"train\.learning_rate: 0\.01 before, auto now"):
        again(inputs, stopped(inputs, tmp_path / "by-hand", 5), **auto)


def test_a_complete_run_is_not_taken_for_one_of_other_data_or_another_model(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    again(inputs, run)
    before = digest(run)
    rows = json.loads(inputs.data.read_text(encoding="utf-8"))
    (tmp_path / "other.json").write_text(json.dumps([*rows[1:], {**rows[0], "output": "No."}]), encoding="utf-8")
    with pytest.raises(RunError, match=r"data\.contents: .* before, .* now"):
        again(inputs, run, data=[str(tmp_path / "other.json")])
    with pytest.raises(RunError, match=r"model weights: .* before, .* now"):
        again(inputs, run, model=str(save_tiny(tmp_path / "model", seed=9)))
    assert digest(run) == before
    (tmp_path / "copy.json").write_bytes(inputs.data.read_bytes())
    assert "the run is complete" in again(inputs, run, data=[str(tmp_path / "copy.json")]).text


def test_a_link_that_leads_nowhere_is_left_alone(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(RunError, match="is not an empty folder"):
        again(inputs, tmp_path / "run")
    assert not (tmp_path / "gone").exists()


def test_a_folder_with_something_else_is_left_alone(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not an empty folder"):
        again(inputs, tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_the_folder_must_have_a_name_that_stays(inputs: Inputs, tmp_path: Path) -> None:
    recipe = inputs.recipe(tmp_path / "run").model_copy(update={"output": None})
    with pytest.raises(RecipeError, match="needs a fixed folder") as caught:
        train(recipe, resume_existing=True, device="cpu")
    assert "--output runs/NAME" in caught.value.fix


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--resume", "runs/a", "--resume-existing"], "not both"),
        (["--resume-existing"], "Give a recipe"),
        (["--model", "m", "--data", "d.json", "--resume-existing"], "--output runs/NAME"),
    ],
)
def test_wrong_use_exits_with_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *arguments]) == 2
    assert told in capsys.readouterr().err


class Machines:
    """Stands for an accelerator of several processes."""

    def __init__(self, others: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_processes = len(others) + 1
        monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [*others, *own])


def pickled(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301  (as between the processes of a run)


def test_what_the_main_process_sees_counts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes late, and would find the folder that the main process has just made, is not asked."""
    late: Any = Machines([(False, None)], monkeypatch)
    assert agreed(late, None) is False
    refused: Any = Machines([(None, pickled(RunError("run.create.not_an_empty_folder", folder="runs/a")))], monkeypatch)
    with pytest.raises(RunError, match="not an empty folder"):
        agreed(refused, None)
    apart: Any = Machines([(True, None)], monkeypatch)
    with pytest.raises(RunError, match="do not see the same"):
        agreed(apart, lambda: False)


PATIENCE_SECONDS = 280


def torchrun(recipe: Path, restarts: int) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "weitune", "train", str(recipe), "--resume-existing", "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def recipe_file(inputs: Inputs, folder: Path) -> Path:
    folder.mkdir()
    tree: dict[str, Any] = {}
    for key, value in inputs.tree(folder / "run", **{"train.epochs": 6, "train.keep_checkpoints": 50}).items():
        group, _, name = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "recipe.yaml"


def kill_rank(launcher: subprocess.Popen[str], rank: str) -> None:
    import psutil

    for child in psutil.Process(launcher.pid).children(recursive=True):
        if child.environ().get("RANK") == rank:
            child.send_signal(signal.SIGKILL)


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_processes_are_killed(inputs: Inputs, tmp_path: Path) -> None:
    """The process that writes is killed: the run ends with the bits of an undisturbed one, and every step once."""
    undisturbed = torchrun(recipe_file(inputs, tmp_path / "undisturbed"), 0)
    said, _ = undisturbed.communicate(timeout=PATIENCE_SECONDS)
    assert undisturbed.returncode == 0, said

    disturbed = torchrun(recipe_file(inputs, tmp_path / "disturbed"), 1)
    run = tmp_path / "disturbed" / "run"
    until(lambda: steps_done(run) >= 6, disturbed)
    kill_rank(disturbed, "0")
    said, _ = disturbed.communicate(timeout=PATIENCE_SECONDS)
    assert disturbed.returncode == 0, said
    assert [event["event"] for event in read_events(run) if event["event"] in {"start", "resume"}] == [
        "start", "resume",
    ]  # fmt: skip
    expected = tmp_path / "undisturbed" / "run"
    assert digest(run / "adapter") == digest(expected / "adapter")
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (run / "checkpoint-42" / name).read_bytes() == (expected / "checkpoint-42" / name).read_bytes()
    mine, theirs = (
        [(e["step"], e["loss"], e["grad_norm"]) for e in read_events(r) if e["event"] == "step"]
        for r in (run, expected)
    )
    assert mine == theirs
