"""Writing a run's events while it trains, waiting for a full disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from weitune.run.disk_retry import DiskRetry, refusals_explained
from weitune.run.events import EventLog
from weitune.run.names import EVENTS

_EVENT_BYTES = 4096
"""What an event needs at most, for the message about a full disk."""


class EventWriter:
    """Appends to ``events.jsonl`` with the time since training began; until :meth:`open`, it writes nothing."""

    def __init__(self, folder: Path, disk: DiskRetry) -> None:
        self._folder, self._disk = folder, disk
        self._log: EventLog | None = None
        self._began = 0.0

    def open(self, step: int, **fields: Any) -> None:
        """Begin, or go on after ``step``, with an event that has these ``fields``."""
        kept = step or -1  # without a checkpoint, the evaluation before the first step is repeated too
        with refusals_explained(self._folder):
            self._log = EventLog(self._folder, keep_steps=kept)
        self._began = time.perf_counter() - self._log.seconds
        self.write("start" if self._log.empty else "resume", step=step, **fields)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Raises RunError if the disk fails for too long."""
        if (log := self._log) is not None:
            at = time.perf_counter() - self._began
            self._disk.keep_trying(lambda: log.write(event, time=at, **fields), EVENTS, _EVENT_BYTES)

    def flush(self) -> None:
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
