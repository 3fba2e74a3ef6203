"""Whether the process that trains a run is still there, judged from outside.

    lock held                                   it trains, or is about to
    lock free, its holder was on this machine   it was killed: the kernel frees the lock of a process that is gone
    lock free, no holder named                  it ended in order, and if no event says why, with an error
    holder on another machine, no locks here    only what it writes tells: a long silence means that it is gone

A file system may keep locks to one machine without saying so. So a lock that another machine's process held proves
nothing here while it is free.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

from weitune.files.publish import process_exists
from weitune.messages import say
from weitune.run.lock import LockState, lock_state
from weitune.run.names import EVENTS, LOCK

SILENCE_SECONDS = 600.0
"""How long a process on another machine may write nothing before it is taken for gone."""
_SLOW_STEPS = 20
"""Steps, at the run's pace, that may pass in silence too: evaluations are long where steps are."""


class Liveness:
    """Looks at a run again and again."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._suspected = ""
        self.step_seconds = 0.0
        """How long a step of the run takes, as far as is known."""

    @property
    def held(self) -> bool:
        return lock_state(self._run).held is True

    def gone(self) -> str:
        """Return why the run has no process any more; nothing if it may have one.

        Two looks in a row must agree, for between them a process may have taken the lock. What it wrote before it was
        gone can be read after this.
        """
        reason = self._reason(lock_state(self._run))
        agreed = reason if reason == self._suspected else ""
        self._suspected = reason
        return agreed

    def _reason(self, seen: LockState) -> str:
        holder = seen.holder
        if seen.held:
            return ""
        if holder is not None and holder.host == socket.gethostname():
            killed = seen.held is False or not process_exists(holder.pid)
            return say("run.liveness.killed", holder=holder) if killed else ""
        if seen.held is False and holder is None:
            return say("run.liveness.ended_with_an_error")
        if self._silent_seconds() < max(SILENCE_SECONDS, _SLOW_STEPS * self.step_seconds):
            return ""
        if holder is None:
            return say("run.liveness.long_silence")
        return say("run.liveness.long_silence_of_holder", holder=holder)

    def _silent_seconds(self) -> float:
        newest = 0.0
        for path in map(self._run.joinpath, (EVENTS, LOCK, "")):
            with suppress(OSError):
                newest = max(newest, path.stat().st_mtime)
        return time.time() - newest
