"""A disk that is full or fails: training pauses and tries again; nothing that was good is touched."""

from __future__ import annotations

import errno
import random
import re
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests.faults.damage import lose
from tests.faults.injection import bad_loss, inject
from tests.faults.layer import Layer, faults
from tests.faults.runs import EVERY, STEPS, Inputs, Listener, assert_same_result
from tests.faults.small import FILES
from tests.faults.test_resume import stopped
from tests.limits import HANG_SECONDS
from weitune.errors import NonFiniteError, RunError
from weitune.run import disk_retry
from weitune.run.checkpoint import fault_of, list_checkpoints, newest_good
from weitune.run.events import read_events
from weitune.run.names import EVENTS
from weitune.training.record import checkpoint_writer
from weitune.training.run import resume, train
from weitune.training.signals import StopRequest


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_retry, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(disk_retry, "SECONDS", 0.5)


def checkpoint_bytes(inputs: Inputs) -> int:
    return sum(path.stat().st_size for path in (inputs.undisturbed / f"checkpoint-{STEPS}").iterdir())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_room_is_made_while_it_waits(inputs: Inputs, tmp_path: Path, share: float) -> None:
    """The disk is full after a share of the checkpoint of step 8; somebody makes room when told."""
    layer = Layer()
    size = checkpoint_bytes(inputs)

    def fill() -> None:
        layer.room_bytes = int(share * size)

    def make_room(line: str) -> None:
        if "Training pauses" in line:
            found, faulty = newest_good(tmp_path / "run")
            assert found is not None
            assert found.step in {EVERY, 2 * EVERY}
            assert not faulty
            layer.room_bytes = None

    listener = Listener(after={2 * EVERY - 1: fill}, on_line=make_room)
    with faults(layer):
        train(inputs.recipe(tmp_path / "run"), reporter=listener, device="cpu")
    assert_same_result(tmp_path / "run", inputs.undisturbed)
    assert f"cannot be written to '{tmp_path / 'run'}': No space left on device" in listener.text
    assert "is written now; training continues" in listener.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_it_gives_up_in_the_end(inputs: Inputs, tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    layer = Layer()
    broken: list[bool] = []
    layer.fails = lambda call, number: code if broken and call == "mkdir" else None  # of the checkpoint's folder
    written: list[Future[object]] = []

    class Writer(ThreadPoolExecutor):
        def submit(self, *work: Any, **options: Any) -> Future[Any]:
            written.append(super().submit(*work, **options))
            return written[-1]

    monkeypatch.setattr(checkpoint_writer, "ThreadPoolExecutor", Writer)
    listener = Listener(
        after={2 * EVERY - 1: lambda: broken.append(True), 2 * EVERY + 1: lambda: wait(written, HANG_SECONDS)}
    )
    with faults(layer), pytest.raises(RunError) as caught:
        train(inputs.recipe(run), reporter=listener, device="cpu")
    message = str(caught.value)
    assert f"checkpoint-8 cannot be written to '{run}'" in message
    needed = int(re.search(r"needs ([\d,]+) bytes, and [\d,]+ bytes are free", message)[1].replace(",", ""))  # type: ignore[index]
    assert 0.9 < needed / checkpoint_bytes(inputs) < 1.2
    assert f"`weitune train --resume {run}`" in message
    assert caught.value.exit_code == 2
    assert [(checkpoint.step, fault_of(checkpoint)) for checkpoint in list_checkpoints(run)] == [(EVERY, "")]
    assert not list(run.glob(".checkpoint*"))
    assert listener.records[-1].step == 2 * EVERY + 1  # it stood still from the first step after the failure
    resume(run, device="cpu")
    assert_same_result(run, inputs.undisturbed)


def test_a_stop_ends_the_waiting(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_retry, "SECONDS", 3600.0)
    stop = StopRequest()
    layer = Layer()
    layer.fails = lambda call, number: errno.ENOSPC if call == "mkdir" and len(listener.records) >= EVERY else None
    listener = Listener(on_line=lambda line: stop.stop("a test") if "Training pauses" in line else None)
    with faults(layer), pytest.raises(RunError, match="checkpoint-4 cannot be written"):
        train(inputs.recipe(tmp_path / "run"), reporter=listener, device="cpu", stop=stop)


def test_events_wait_too_and_no_line_is_torn(inputs: Inputs, tmp_path: Path) -> None:
    """The disk has room for half a line."""
    layer = Layer()
    listener = Listener(
        after={5: lambda: setattr(layer, "room_bytes", 40)},
        on_line=lambda line: setattr(layer, "room_bytes", None) if "Training pauses" in line else None,
    )
    with faults(layer):
        train(inputs.recipe(tmp_path / "run"), reporter=listener, device="cpu")
    assert_same_result(tmp_path / "run", inputs.undisturbed)
    lines = (tmp_path / "run" / EVENTS).read_bytes().splitlines()
    assert len(lines) == len(list(read_events(tmp_path / "run")))
    assert f"{EVENTS} cannot be written" in listener.text


def test_old_checkpoints_that_cannot_be_deleted_do_not_stop_a_run(inputs: Inputs, tmp_path: Path) -> None:
    layer = Layer(fails=lambda call, number: errno.EIO if call == "rmdir" else None)
    listener = Listener()
    with faults(layer):
        train(inputs.recipe(tmp_path / "run"), reporter=listener, device="cpu")
    assert_same_result(tmp_path / "run", inputs.undisturbed)
    assert "older checkpoints could not be deleted" in listener.text
    resume(tmp_path / "run", device="cpu")
    assert not list((tmp_path / "run").glob(".checkpoint*"))


def test_a_run_that_ends_for_another_reason_says_what_was_not_written(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, bad_loss, EVERY + 1, float("nan"))
    layer = Layer(fails=lambda call, number: errno.ENOSPC if call == "mkdir" and listener.records else None)
    listener = Listener()
    with faults(layer), pytest.raises(NonFiniteError):
        train(inputs.recipe(tmp_path / "run"), reporter=listener, device="cpu")
    assert "checkpoint-4 could not be written: [Errno 28] No space left on device" in listener.text


@pytest.mark.parametrize("call", ["open", "replace", "rename"])
def test_a_disk_that_refuses_at_the_start_of_a_resume(inputs: Inputs, tmp_path: Path, call: str) -> None:
    """The lock, the events that are cleaned, the damaged checkpoint that is set aside."""
    run = stopped(inputs, tmp_path / "run", 6)
    lose(run / "checkpoint-6" / FILES[1], random.Random(0))
    layer = Layer(fails=lambda name, number: errno.EROFS if name == call else None)
    with faults(layer), pytest.raises(RunError, match=f"'{run}' cannot be written to: .*Read-only"):
        resume(run, device="cpu")
    resume(run, device="cpu")
    assert_same_result(run, inputs.undisturbed)


def test_a_folder_that_cannot_be_made(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="cannot be made"):
        train(inputs.recipe(tmp_path / "file" / "run"), device="cpu")
