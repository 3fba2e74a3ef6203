"""Writing checkpoints in a thread beside training, one at a time.

    training thread   step 99 │ step 100 │copy│ step 101 │ step 102 …
    saver's thread                            │serialise, write, hash, flush, rename, rotate│

A checkpoint gets its name after all of this, so a kill at any instant leaves the one before. If writing fails, the
training thread sees it at its next step and pauses (:mod:`.disk_retry`); the copy is kept until it is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from weitune.messages import say
from weitune.run.checkpoint import Checkpoint, write_checkpoint
from weitune.run.disk_retry import DiskRetry
from weitune.run.names import checkpoint_name
from weitune.run.rotation import rotate
from weitune.training.resume.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is on the disk."""

    checkpoint: Checkpoint
    seconds: float
    """Time of writing, beside training."""
    paused_seconds: float
    """Time that training waited for it."""
    notes: list[str]
    """Problems with older checkpoints."""


class Saver:
    """Writes snapshots of one run in a thread of its own."""

    def __init__(self, run: Path, keep: int, disk: DiskRetry, flush_events: Callable[[], None]) -> None:
        """Keep ``keep`` checkpoints in ``run``; ``flush_events`` waits until all events are on the disk."""
        self._run, self._keep, self._disk, self._flush_events = run, keep, disk, flush_events
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._pending: tuple[Snapshot, float, Future[Saved]] | None = None

    def save(self, snapshot: Snapshot, paused_seconds: float) -> None:
        """Begin to write ``snapshot``, which took ``paused_seconds`` to take. The one before must have been settled."""
        if self._pending is not None:
            raise RuntimeError("a snapshot is being written already")
        self._pending = snapshot, paused_seconds, self._thread.submit(self._store, snapshot, paused_seconds)

    def settle(self, *, wait: bool = False) -> Saved | None:
        """Return what was saved since the last call, if anything; with ``wait``, finish what is being written.

        Raises RunError if the disk fails for too long (:mod:`weitune.run.disk_retry`).
        """
        if self._pending is None or not (wait or self._pending[2].done()):
            return None
        snapshot, paused, future = self._pending
        try:
            saved = future.result()
        except OSError as error:
            saved = self._disk.keep_trying(
                lambda: self._store(snapshot, paused), checkpoint_name(snapshot.step), snapshot.size_bytes, error
            )
        self._pending = None
        return saved

    def close(self) -> str:
        """Wait for what is being written, without trying again; return what went wrong, if anything."""
        self._thread.shutdown(wait=True)
        error = self._pending[2].exception() if self._pending else None
        if self._pending is None or error is None:
            return ""
        return say("training.saver.not_written", name=checkpoint_name(self._pending[0].step), error=error)

    def _store(self, snapshot: Snapshot, paused_seconds: float) -> Saved:
        began = time.perf_counter()
        self._flush_events()  # no checkpoint is ahead of the events
        checkpoint = write_checkpoint(self._run, snapshot.step, snapshot.files())
        try:
            notes = [
                say("training.saver.faulty", name=old.folder.name, fault=fault)
                for old, fault in rotate(self._run, self._keep)
            ]
        except OSError as error:  # what could not be deleted now is deleted next time
            notes = [say("training.saver.not_deleted", error=error)]
        return Saved(checkpoint, time.perf_counter() - began, paused_seconds, notes)
