"""``weitune watch`` on a run whose process is gone ends and says so; on one that is there, it goes on."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.look.test_watch import END, START, step, wait_for, write
from tests.faults.test_lock import holder
from tests.tiny import save_tiny_run
from weitune import cli
from weitune.cli.look.watch import follow
from weitune.cli.shared.dashboard import Dashboard
from weitune.run.events import Event, typed_event
from weitune.run.liveness import SILENCE_SECONDS, Liveness, is_training
from weitune.run.lock import LockState, lock_state, run_lock
from weitune.run.names import LOCK

STOP = {"event": "stop", "step": 1, "reason": "SIGTERM"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = save_tiny_run(tmp_path / "my run")
    write(folder, START, step(1))
    return folder


def note(run: Path, *, host: str = "", pid: int = 4711, silent: float = 0) -> None:
    """Leave a lock file as the process ``pid`` on ``host`` does; the run is ``silent`` for so many seconds."""
    told = {"pid": pid, "host": host or socket.gethostname(), "since": "2026-01-31 22:15:03"}
    (run / LOCK).write_text(json.dumps(told))
    then = time.time() - silent
    for path in (run / LOCK, run / "events.jsonl", run):
        os.utime(path, (then, then))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def twice(run: Path) -> str:
    pulse = Liveness(run)
    assert pulse.gone() == ""  # one look is not enough
    return pulse.gone()


def test_a_killed_run_is_reported_with_what_to_do(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = holder(run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cli.main(["watch", str(run)]) == 0
    *lines, reason, fix = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["start at step 0", "step 1"]
    assert reason.startswith(f"gone after step 1: process {process.pid} on {socket.gethostname()}, since ")
    assert reason.endswith("was killed, or the machine stopped")
    assert fix == f"continue it:  weitune train --resume '{run}'"
    assert cli.main(["watch", str(run), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "its process is gone" in shown
    assert reason in shown


def test_a_kill_while_it_is_watched_and_a_run_that_goes_on(run: Path) -> None:
    process = holder(run)
    dashboard, seen = Dashboard(), []
    watcher = threading.Thread(target=lambda: seen.extend(follow(run, dashboard, Liveness(run))))
    watcher.start()
    wait_for(lambda: dashboard.step == 1)
    time.sleep(1.2)  # two looks at a lock that is held
    assert watcher.is_alive()
    process.kill()
    process.wait()
    watcher.join(60)
    assert not watcher.is_alive()
    assert seen[-1].kind == "gone"
    with run_lock(run):  # it is resumed: whoever watches now, goes on watching
        assert twice(run) == ""
        again = Dashboard()
        watcher = threading.Thread(target=lambda: list(follow(run, again, Liveness(run))))
        watcher.start()
        wait_for(lambda: again.step == 1)
        write(run, {"event": "resume", "step": 1, "steps": 40}, step(2), END)
    watcher.join(60)
    assert not watcher.is_alive()
    assert (again.ended, again.gone) == ("finished", "")


def test_a_stopped_run_is_followed_while_a_process_goes_on_with_it(run: Path) -> None:
    write(run, STOP)
    dashboard = Dashboard()
    with run_lock(run):
        watcher = threading.Thread(target=lambda: list(follow(run, dashboard, Liveness(run))))
        watcher.start()
        wait_for(lambda: dashboard.ended)
        write(run, {"event": "resume", "step": 1, "steps": 40}, step(2))
        wait_for(lambda: dashboard.step == 2)
        write(run, END)
    watcher.join(60)
    assert not watcher.is_alive()
    assert dashboard.ended == "finished"


def test_an_end_without_an_event(run: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(run):
        raise ZeroDivisionError
    assert "ended with an error" in twice(run)


def test_what_was_written_last_counts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note(run, pid=dead_pid())
    write(run, END)
    assert cli.main(["watch", str(run)]) == 0
    assert "gone" not in capsys.readouterr().out
    assert cli.main(["watch", str(run), "--once"]) == 0
    assert "finished" in capsys.readouterr().out


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    fresh = save_tiny_run(tmp_path / "fresh")
    (fresh / "events.jsonl").write_text("")
    assert lock_state(fresh) == LockState(None, None)
    assert twice(fresh) == ""
    old = time.time() - SILENCE_SECONDS - 60
    for path in (fresh / "events.jsonl", fresh):
        os.utime(path, (old, old))
    assert "no process has written anything for a long time" in twice(fresh)


def test_another_machine_is_judged_by_its_silence(run: Path) -> None:
    """A file system may keep locks to one machine, so that a lock held elsewhere looks free here."""
    note(run, host="another-machine")
    assert twice(run) == ""
    note(run, host="another-machine", silent=SILENCE_SECONDS + 60)
    assert "process 4711 on another-machine, since 2026-01-31 22:15:03 has written nothing" in twice(run)
    slow = Liveness(run)
    slow.step_seconds = SILENCE_SECONDS / 10
    assert (slow.gone(), slow.gone()) == ("", "")
    step = {"event": "step", "step": 1, "loss": 1.0, "step_seconds": SILENCE_SECONDS / 10}
    (run / "events.jsonl").write_text(json.dumps(step) + "\n")
    note(run, host="another-machine", silent=SILENCE_SECONDS + 60)
    assert is_training(run)


def test_without_locks_the_number_of_the_process_tells(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    note(run, pid=os.getpid(), silent=SILENCE_SECONDS + 60)
    assert lock_state(run).held is None
    assert twice(run) == ""
    note(run, pid=dead_pid())
    assert "was killed" in twice(run)


def test_who_looks_keeps_nobody_out(run: Path) -> None:
    """A trainer that finds the lock held for the moment of a look tries again."""
    fcntl = pytest.importorskip("fcntl")
    (run / LOCK).touch()
    with (run / LOCK).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        released = threading.Timer(0.2, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        released.start()
        with run_lock(run) as lock:
            assert lock.held
            assert lock_state(run).held
        released.join()
    before = (run / LOCK).stat()
    assert lock_state(run).held is False
    assert (run / LOCK).stat().st_mtime_ns == before.st_mtime_ns


def test_the_dashboard_says_that_the_process_is_gone() -> None:
    dashboard = Dashboard()
    events: list[dict[str, Any]] = [START, step(1), {"event": "gone", "step": 1, "reason": "killed"}]
    for event in events:
        dashboard.feed(typed_event(event))
    assert (dashboard.ended, dashboard.gone) == ("its process is gone", "killed")
    dashboard.feed(Event("resume", 1, 40))
    assert (dashboard.ended, dashboard.gone) == ("", "")
