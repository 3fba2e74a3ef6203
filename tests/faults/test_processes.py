"""Real processes, killed and signalled while they load, train and save; then the same command line goes on.

The long form, twenty random instants each, is bench/faults.py.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.processes import Process, Starter, steps_done
from tests.faults.runs import EVERY, STEPS, Inputs, assert_same_result
from weitune.run.checkpoint import fault_of, list_checkpoints, newest_good
from weitune.run.events import read_events

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs fork and POSIX signals")


@pytest.fixture(scope="module")
def starter(inputs: Inputs) -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture
def start(starter: Starter, inputs: Inputs, tmp_path: Path) -> Callable[..., Process]:
    """Return a function that begins a run, or goes on with it if its folder is there."""

    def started(**overrides: object) -> Process:
        run = tmp_path / "run"
        if (run / "recipe.yaml").exists():
            return starter.start(["train", "--resume", str(run), "--device", "cpu"], tmp_path / "said")
        tree = {key: value[0] if isinstance(value, list) else value for key, value in inputs.tree(run).items()}
        options = [f"--{key}={value}" for key, value in {**tree, **overrides}.items()]
        return starter.start(["train", *options, "--device", "cpu"], tmp_path / "said")

    return started


def finished(start: Callable[..., Process], inputs: Inputs, run: Path) -> None:
    """Go on with the run, which ends as one that nothing disturbed."""
    process = start()
    assert process.wait() == 0, process.said
    assert_same_result(run, inputs.undisturbed)


@pytest.mark.parametrize("moment", ["loading", "folder made", "step 2", "saving", "step 9, twice"])
def test_killed(start: Callable[..., Process], inputs: Inputs, tmp_path: Path, moment: str) -> None:
    run = tmp_path / "run"
    process = start()
    if moment == "loading":
        process.until(lambda: "rows read" in process.said)
    elif moment == "folder made":
        process.until(run.exists)
    elif moment == "saving":
        process.until(lambda: list(run.glob(".checkpoint-*.partial")) or list_checkpoints(run), pause=0.0005)
    else:
        process.until(lambda: steps_done(run) >= int(moment[5]))
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found, faulty = newest_good(run)
    assert not faulty
    if moment == "step 9, twice":
        assert found is not None
        process = start()
        process.until(lambda: steps_done(run) >= found.step + 2 or (run / "adapter").exists())
        process.send(signal.SIGKILL)
        process.wait()
    finished(start, inputs, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_training(
    start: Callable[..., Process], inputs: Inputs, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = start()
    process.until(lambda: steps_done(run) >= 2)
    process.send(number)
    assert process.wait() == 130
    found, _ = newest_good(run)
    assert found is not None
    assert found.step == steps_done(run)
    assert f"{number.name}: stopping after this step with a checkpoint" in process.said
    assert f"stopped by {number.name} after step {found.step}; continue with" in " ".join(process.said.split())
    assert [(e["step"], e["reason"]) for e in read_events(run) if e["event"] == "stop"] == [(found.step, number.name)]
    finished(start, inputs, run)


def test_stopped_while_it_loads(start: Callable[..., Process], inputs: Inputs, tmp_path: Path) -> None:
    process = start()
    process.until(lambda: "rows read" in process.said)
    process.send(signal.SIGTERM)
    assert process.wait() == 130
    if not (tmp_path / "run").exists():
        assert "stopped by SIGTERM before a step was done; nothing was written" in process.said
        assert not list(tmp_path.glob(".run*"))
    finished(start, inputs, tmp_path / "run")


def test_a_second_signal_ends_it_at_once(start: Callable[..., Process], inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start()
    process.until(lambda: steps_done(run) >= EVERY + 1)
    process.send(signal.SIGTERM)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert all(not fault_of(checkpoint) for checkpoint in list_checkpoints(run))
    finished(start, inputs, run)


def test_a_notice_saves_and_goes_on(start: Callable[..., Process], inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = {"train.checkpoint_every": 1000}
    process = start(**overrides)
    process.until(lambda: steps_done(run) >= 1)
    process.send(signal.SIGUSR1)
    assert process.wait() == 0
    saved = [event["step"] for event in read_events(run) if event["event"] == "checkpoint"]
    assert len(saved) == 2
    assert saved[0] < STEPS
    assert saved[1] == STEPS
    assert "SIGUSR1: writing a checkpoint after this step" in process.said
    assert_same_result(run, inputs.undisturbed)


def test_a_run_in_progress_is_not_resumed_by_another(
    start: Callable[..., Process], inputs: Inputs, tmp_path: Path
) -> None:
    first = start()
    first.until(lambda: steps_done(tmp_path / "run") >= 1)
    first.send(signal.SIGSTOP)
    second = start()
    assert second.wait() == 2
    assert f"another process is training in '{tmp_path / 'run'}': process {first.pid}" in " ".join(second.said.split())
    first.send(signal.SIGCONT)
    assert first.wait() == 0
    assert_same_result(tmp_path / "run", inputs.undisturbed)
