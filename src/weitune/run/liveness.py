"""Tell from outside whether the process that trains a run is still alive.

    lock held                                   it trains, or is about to
    lock free, its holder was on this machine   it was killed: the kernel frees the lock of a dead process
    lock free, no holder named                  it ended in order; if no event gives the reason, with an error
    holder on another machine, no locks here    its writes decide: after a long silence it counts as dead

Some file systems apply locks to one machine only. A free lock that was held on another machine therefore proves
nothing.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

from weitune.files.publish import process_exists
from weitune.messages import say
from weitune.run.events import Step, read_events, typed_event
from weitune.run.history import finite
from weitune.run.lock import lock_state
from weitune.run.names import EVENTS, LOCK

SILENCE_SECONDS = 600.0
"""How long a process on another machine may write nothing before it counts as dead."""
_SLOW_STEPS = 20
"""A slow run may be silent for the time of this many steps, since its evaluations are slow too."""


def is_training(run: Path | str) -> bool:
    """Return whether a process trains in the folder ``run`` now, as far as this machine can tell.

    It reads the lock and waits for nothing. A process on another machine counts as training while it writes.
    """
    folder = Path(run)
    return (folder / LOCK).exists() and not Liveness(folder).why_dead()


class Liveness:
    """Observes a run repeatedly."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._suspected = ""
        self.step_seconds = 0.0
        """How long a step of the run takes; 0 if unknown, and then that of its last event counts."""

    @property
    def held(self) -> bool:
        return lock_state(self._run).held is True

    def gone(self) -> str:
        """Return why the run has no process any more; empty if it may have one.

        Two calls in a row must agree, since a process may have taken the lock between them. Read the run's events
        after this call: then they include the last ones that the process wrote.
        """
        reason = self.why_dead()
        agreed = reason if reason == self._suspected else ""
        self._suspected = reason
        return agreed

    def why_dead(self) -> str:
        """Return why no process trains at this instant; empty if one does, or may."""
        seen = lock_state(self._run)
        holder = seen.holder
        if seen.held:
            return ""
        if holder is not None and holder.host == socket.gethostname():
            killed = seen.held is False or not process_exists(holder.pid)
            return say("run.liveness.killed", holder=holder) if killed else ""
        if seen.held is False and holder is None:
            return say("run.liveness.ended_with_an_error")
        if self._silent_seconds() < max(SILENCE_SECONDS, _SLOW_STEPS * (self.step_seconds or self._recorded_seconds())):
            return ""
        if holder is None:
            return say("run.liveness.long_silence")
        return say("run.liveness.long_silence_of_holder", holder=holder)

    def _recorded_seconds(self) -> float:
        steps = [event for event in map(typed_event, read_events(self._run)) if isinstance(event, Step)]
        return (finite(steps[-1].step_seconds) or 0.0) if steps else 0.0

    def _silent_seconds(self) -> float:
        newest = 0.0
        for path in map(self._run.joinpath, (EVENTS, LOCK, "")):
            with suppress(OSError):
                newest = max(newest, path.stat().st_mtime)
        return time.time() - newest
