"""Checkpoints of a run, and their events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weitune.errors import NonFiniteError
from weitune.model.file_names import ADAPTER_FILES, ADAPTER_FOLDER, MODEL_FILES
from weitune.run.checkpoint import Checkpoint, publish_adapter
from weitune.run.disk_retry import DiskRetry
from weitune.training.prepared_run import PreparedRun
from weitune.training.record.event_writer import EventWriter
from weitune.training.record.saver import Saver
from weitune.training.reporter import Reporter
from weitune.training.resume.snapshot import Snapshot


class CheckpointWriter:
    """Saves a model in training, one checkpoint at a time, and reports those that are on the disk."""

    def __init__(
        self, folder: Path, run: PreparedRun, disk: DiskRetry, events: EventWriter, reporter: Reporter
    ) -> None:
        self._folder, self._trained, self._optimizer = folder, run.trainable.trained, run.loop.optimizer
        self._disk, self._events, self._reporter = disk, events, reporter
        self._state = run.checkpoint_state()
        self._saver = Saver(folder, run.loop.train.keep_checkpoints, disk, events.flush)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint with ``state``. Raises NonFiniteError if a number in it is not finite."""
        began = time.perf_counter()
        self.announce(wait=True)  # one at a time
        try:
            snapshot = Snapshot.take(step, self._trained, self._optimizer, {**self._state, **state})
        except NonFiniteError as error:
            self._events.write("not finite", step=step, message=str(error))
            raise
        self._saver.save(snapshot, time.perf_counter() - began)

    def announce(self, *, wait: bool = False) -> None:
        """Report the checkpoint that was finished since the last call, if any; with ``wait``, finish it first."""
        saved = self._saver.settle(wait=wait)
        if saved is None:
            return
        for note in saved.notes:
            self._reporter.say(note)
        self._events.write(
            "checkpoint",
            step=saved.checkpoint.step,
            seconds=saved.seconds,
            paused_seconds=saved.paused_seconds,
            notes=saved.notes,
        )
        self._reporter.saved(saved.checkpoint.folder)

    def publish(self, checkpoint: Checkpoint) -> Path:
        """Make the adapter of ``checkpoint`` the run's final one, and return its folder."""
        target = self._folder / ADAPTER_FOLDER
        self._disk.keep_trying(lambda: publish_adapter(checkpoint, target), ADAPTER_FOLDER, _adapter_bytes(checkpoint))
        return target

    def close(self) -> None:
        """Wait for a checkpoint that is being written."""
        if trouble := self._saver.close():
            self._reporter.say(trouble)


def _adapter_bytes(checkpoint: Checkpoint) -> int:
    paths = map(checkpoint.folder.joinpath, (*ADAPTER_FILES, *MODEL_FILES))
    return sum(path.stat().st_size for path in paths if path.is_file())
