"""``events.jsonl``: what happened in a run, one JSON object a line, appended and never rewritten.

A line is written with one call, so a crash can tear the last line only; a torn line is cut off when the run goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "events.jsonl"


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a run in order, leaving out a torn last line. Yields nothing if there is no file."""
    try:
        with (folder / FILE).open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)
    except FileNotFoundError:
        return


class EventLog:
    """Append events to a run's ``events.jsonl``; times go on from where the file ends."""

    def __init__(self, folder: Path, *, keep_steps: int | None = None) -> None:
        """Open the file for appending. Steps after ``keep_steps`` are cut off: they will be computed again."""
        self._path = folder / FILE
        self.seconds = 0.0
        """Training time that the file accounts for so far, in seconds."""
        self._cut(keep_steps)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _cut(self, keep_steps: int | None) -> None:
        """Truncate the file after the last line to keep, and learn the time from it."""
        if not self._path.exists():
            return
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                event = json.loads(line)
                if keep_steps is not None and event.get("step", 0) > keep_steps:
                    break
                end += len(line)
                self.seconds = max(self.seconds, float(event.get("time", 0.0)))
        os.truncate(self._path, end)

    def write(self, event: str, **fields: Any) -> dict[str, Any]:
        """Append one event and return it. Numbers that are not finite become the strings "nan", "inf", "-inf"."""
        record = {"event": event, **{name: _plain(value) for name, value in fields.items()}}
        os.write(self._file, (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return record

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        os.fsync(self._file)
        os.close(self._file)


def _plain(value: Any) -> Any:
    """JSON has no word for numbers that are not finite."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
