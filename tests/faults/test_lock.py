"""Two processes cannot train into one folder; a lock that was left behind is none."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs import Inputs, Listener, assert_same_result, digest
from tests.faults.test_resume import stopped
from weitune.errors import RunError
from weitune.run.events import read_events
from weitune.run.lock import run_lock
from weitune.run.names import LOCK
from weitune.training.run import resume

_HOLD = """
import sys, time
from pathlib import Path
from weitune.run.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(run: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_has_it_and_a_killed_one_leaves_it_free(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(RunError, match=f"another process is training in '{tmp_path}': process {process.pid} on "), \
            run_lock(tmp_path):  # fmt: skip
        pytest.fail("two hold the lock")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with run_lock(tmp_path) as lock:
        assert lock.held
        assert lock.abandoned is not None
        assert lock.abandoned.pid == process.pid
    with run_lock(tmp_path) as lock:
        assert lock.abandoned is None


def test_it_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with run_lock(tmp_path) as lock:
        assert lock.held
        assert lock.abandoned is None


def test_two_runs_of_one_process(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
        pytest.fail("two hold the lock")


def test_without_locks_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with run_lock(tmp_path) as lock:
        assert not lock.held


def test_what_the_file_says_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"pid": "not a holder"')
    with run_lock(tmp_path) as lock:
        assert lock.held
        assert lock.abandoned is None


def test_a_run_in_progress_is_not_resumed(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 2)
    process = holder(run)
    before = digest(run)
    with pytest.raises(RunError, match="another process is training in"):
        resume(run, device="cpu")
    assert digest(run) == before
    process.kill()
    process.wait()
    listener = Listener()
    resume(run, reporter=listener, device="cpu")
    assert f"process {process.pid} on" in listener.text
    assert "did not end properly: it was killed, or the machine stopped" in listener.text
    notes = [event["notes"] for event in read_events(run) if event["event"] == "resume"]
    assert any("did not end properly" in note for note in notes[0])
    assert_same_result(run, inputs.undisturbed)
