"""Writing checkpoints beside training, one at a time.

    training thread   step 99 │ step 100 │copy│ step 101 │ step 102 …
    writer's thread                           │serialise, write, hash, flush, rename, rotate│

A checkpoint gets its name after all of this, so a kill at any instant leaves the one before. If writing fails, the
training thread sees it at its next step and pauses (:mod:`.disk_retry`); the copy is kept until it is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from weitune.errors import NonFiniteError
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, ADAPTER_FOLDER, MODEL_FILES
from weitune.run.checkpoint import Checkpoint, publish_adapter, write_checkpoint
from weitune.run.disk_retry import DiskRetry
from weitune.run.names import checkpoint_name
from weitune.run.rotation import rotate
from weitune.training.prepared_run import PreparedRun
from weitune.training.record.event_writer import EventWriter
from weitune.training.reporter import Reporter
from weitune.training.resume.snapshot import Snapshot

_Written = tuple[Checkpoint, float, list[str]]
"""A checkpoint on the disk, the seconds that writing took, and problems with older ones."""


class CheckpointWriter:
    """Saves a model in training, and reports checkpoints once they are on the disk."""

    def __init__(
        self, folder: Path, run: PreparedRun, disk: DiskRetry, events: EventWriter, reporter: Reporter
    ) -> None:
        self._folder, self._run, self._state = folder, run, run.checkpoint_state()
        self._disk, self._events, self._reporter = disk, events, reporter
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._pending: tuple[Snapshot, float, Future[_Written]] | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint with ``state``. Raises NonFiniteError if a number in it is not finite."""
        began = time.perf_counter()
        self.announce(wait=True)  # one at a time
        trained, optimizer = self._run.trainable.trained, self._run.loop.optimizer
        try:
            snapshot = Snapshot.take(step, trained, optimizer, {**self._state, **state})
        except NonFiniteError as error:
            self._events.write("not finite", step=step, message=str(error))
            raise
        paused_seconds = time.perf_counter() - began
        self._pending = snapshot, paused_seconds, self._thread.submit(self._write, snapshot)

    def announce(self, *, wait: bool = False) -> None:
        """Report the checkpoint that was finished since the last call, if any; with ``wait``, finish it first.

        Raises RunError if the disk fails for too long (:mod:`weitune.run.disk_retry`).
        """
        if self._pending is None or not (wait or self._pending[2].done()):
            return
        snapshot, paused_seconds, future = self._pending
        try:
            written = future.result()
        except OSError as error:
            name = checkpoint_name(snapshot.step)
            written = self._disk.keep_trying(lambda: self._write(snapshot), name, snapshot.size_bytes, error)
        self._pending = None
        checkpoint, seconds, notes = written
        for note in notes:
            self._reporter.say(note)
        self._events.write(
            "checkpoint", step=checkpoint.step, seconds=seconds, paused_seconds=paused_seconds, notes=notes
        )
        self._reporter.saved(checkpoint.folder)

    def publish(self, checkpoint: Checkpoint) -> Path:
        """Make the adapter of ``checkpoint`` the run's final one, and return its folder."""
        target = self._folder / ADAPTER_FOLDER
        files = map(checkpoint.folder.joinpath, (*ADAPTER_FILES, *MODEL_FILES))
        size = sum(path.stat().st_size for path in files if path.is_file())
        self._disk.keep_trying(lambda: publish_adapter(checkpoint, target), ADAPTER_FOLDER, size)
        return target

    def close(self) -> None:
        """Wait for a checkpoint that is being written, without trying again."""
        self._thread.shutdown(wait=True)
        if self._pending is not None and (error := self._pending[2].exception()):
            name = checkpoint_name(self._pending[0].step)
            self._reporter.say(say("training.checkpoint_writer.not_written", name=name, error=error))

    def _write(self, snapshot: Snapshot) -> _Written:
        began = time.perf_counter()
        self._events.flush()  # no checkpoint is ahead of the events
        checkpoint = write_checkpoint(self._folder, snapshot.step, snapshot.files())
        try:
            faulty = rotate(self._folder, self._run.loop.train.keep_checkpoints)
            notes = [
                say("training.checkpoint_writer.faulty", name=old.folder.name, fault=fault) for old, fault in faulty
            ]
        except OSError as error:  # what could not be deleted now is deleted next time
            notes = [say("training.checkpoint_writer.not_deleted", error=error)]
        return checkpoint, time.perf_counter() - began, notes
