"""Retry writes that the disk refuses: pause, try again, and give up only after minutes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from weitune.errors import RunError
from weitune.files.cache import free_bytes
from weitune.messages import say
from weitune.progress import Note
from weitune.shell import shell_command

T = TypeVar("T")

SECONDS = 300.0
"""How long a run waits for the disk; longer, and the collectives in which its other processes wait time out."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0
_POLL_SECONDS = 0.2
"""How long a stop signal may go unnoticed while waiting."""


@contextmanager
def refusals_explained(run: Path) -> Iterator[None]:
    """Raise RunError for an OSError in the block that a retry would not fix."""
    try:
        yield
    except OSError as error:
        raise RunError(
            "run.disk_retry.refused",
            folder=run.absolute(),
            error=error,
            command=shell_command("train", "--resume", run),
        ) from error


class DiskRetry:
    """Retries with growing pauses until the time is up or a stop signal comes."""

    def __init__(self, run: Path, note: Note, stopping: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait up to ``seconds`` (SECONDS if not given) for each thing to be written into ``run``.

        ``note`` gets lines for the user; the waiting ends when ``stopping()`` is true.
        """
        self._run, self._note, self._stopping = run, note, stopping
        self._seconds = SECONDS if seconds is None else seconds

    def keep_trying(self, work: Callable[[], T], what: str, needed_bytes: int, first_error: OSError | None = None) -> T:
        """Return what ``work`` returns once it raises no OSError. ``first_error``: it has failed with that already.

        When the time is up, raises RunError with the path, the error and the bytes needed.
        """
        if first_error is None:
            try:
                return work()
            except OSError as error:
                first_error = error
        trouble = self._trouble(first_error, what, needed_bytes)
        self._note(say("run.disk_retry.training_pauses", trouble=trouble, seconds=self._seconds))
        end, pause = time.monotonic() + self._seconds, FIRST_PAUSE_SECONDS
        while time.monotonic() < end and not self._stopping():
            self._wait(min(pause, end - time.monotonic()))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            try:
                result = work()
            except OSError as error:
                trouble = self._trouble(error, what, needed_bytes)
            else:
                self._note(say("run.disk_retry.written_now", what=what))
                return result
        command = shell_command("train", "--resume", self._run)
        raise RunError("run.disk_retry.given_up", trouble=trouble, command=command)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))

    def _trouble(self, error: OSError, what: str, needed_bytes: int) -> str:
        free = free_bytes(self._run)
        reason = os.strerror(error.errno) if error.errno else str(error)
        values = {"what": what, "folder": self._run.absolute(), "reason": reason, "needed_bytes": needed_bytes}
        if free is None:
            return say("run.disk_retry.trouble", **values)
        return say("run.disk_retry.trouble_and_free_room", **values, free_bytes=free)
