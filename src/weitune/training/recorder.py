"""What a run writes down while it trains: events, a checkpoint now and then, and at the end the adapter."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from weitune.errors import NonFiniteError
from weitune.forecast.memory_watch import MemoryWatch
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, ADAPTER_FOLDER, MODEL_FILES
from weitune.model.lora.trainable_state import TrainableState
from weitune.run.checkpoint import Checkpoint, publish_adapter
from weitune.run.disk_retry import DiskRetry, refusals_explained
from weitune.run.events import EventLog
from weitune.run.names import EVENTS
from weitune.training.loop import Loop, StepRecord
from weitune.training.reporter import Reporter
from weitune.training.resume.snapshot import Snapshot, restore
from weitune.training.saver import Saver
from weitune.training.signals import StopRequest
from weitune.training.validation import Validator
from weitune.training.validation_history import ValidationHistory, chosen_checkpoint

_EVENT_BYTES = 4096
"""What an event needs at most, for the message about a full disk."""


class Recorder:
    """A :class:`.Watcher` that writes into the run's folder, if this is the ``main`` process."""

    def __init__(
        self,
        folder: Path,
        trained: TrainableState,
        loop: Loop,
        *,
        state: Mapping[str, Any],
        reporter: Reporter,
        stop: StopRequest,
        memory: MemoryWatch,
        main: bool = True,
        validator: Validator | None = None,
    ) -> None:
        """Keep what checkpoints are made of; ``state`` goes into each of them, with what ``validator`` finds."""
        self._folder, self._trained, self._loop, self._state = folder, trained, loop, state
        self._reporter, self._stop, self._memory, self._validator = reporter, stop, memory, validator
        self._accelerator = loop.accelerator
        self._main = main
        self._disk = DiskRetry(folder, reporter.say, lambda: bool(stop))
        self._log: EventLog | None = None
        self._saver: Saver | None = None
        self._began = time.perf_counter()
        self._saved = 0
        self._history = ValidationHistory()
        self.step = 0
        """Steps done so far."""

    @property
    def complete(self) -> bool:
        """Whether the run is over: all steps are done, or patience with the validation loss is lost."""
        return self.step == self._loop.plan.steps or self._history.patience_exhausted(self._loop.train.patience)

    def begin(self, checkpoint: Checkpoint | None, notes: list[str]) -> int:
        """Restore ``checkpoint`` if there is one, open the events, and return how many steps are done.

        ``notes``, what is out of the ordinary about this start, go into the first event.
        """
        if checkpoint is not None:
            restore(checkpoint, self._trained, self._loop.optimizer)
            self.step = self._saved = checkpoint.step
            self._history = ValidationHistory.from_state(checkpoint.state)
        if self._main:
            with refusals_explained(self._folder):
                self._log = EventLog(self._folder, keep_steps=self.step)
            self._saver = Saver(self._folder, self._loop.train.keep_checkpoints, self._disk, self._log.flush)
            self._began = time.perf_counter() - self._log.seconds
            first = self._log.empty
            self._write("start" if first else "resume", step=self.step, steps=self._loop.plan.steps, notes=notes)
        return self.step

    def catch_up(self) -> None:
        """Evaluate the model before the first step, or where a stop had come before an evaluation."""
        if self._evaluate() and self.step:
            self._save(again=True)  # the checkpoint is there, but does not know how good it is

    def stepped(self, record: StepRecord) -> bool:
        """Write the step down, save a checkpoint when one is due, and return whether to go on."""
        self.step = record.step
        self._write("step", **asdict(record))
        self._reporter.stepped(record)
        self._settle()
        scarce = self._memory.scarce()
        if scarce:
            self._reporter.say(scarce)
            self._write("memory", step=self.step, message=scarce)
        stopping, wanted = self._asked(bool(self._stop), self._stop.checkpoint or bool(scarce))
        if wanted:
            self._stop.checkpoint = False
        last = self.step == self._loop.plan.steps
        evaluated = (last or not stopping) and self._evaluate()
        due = self.step % self._loop.train.checkpoint_every == 0 or last
        if due or evaluated or wanted or stopping:
            self._save()
        if stopping and not self.complete:
            self._settle(wait=True)
            self._write("stop", step=self.step, reason=self._stop.reason)
        return not (stopping or self.complete)

    def failed(self, record: StepRecord) -> None:
        """Write down the numbers of a step that is not finite."""
        self._write("not finite", **asdict(record))

    def finish(self) -> None:
        """Wait for the last checkpoint and publish its adapter as the final one."""
        if self._main:
            self._settle(wait=True)
            chosen = chosen_checkpoint(self._folder, self.step, self._loop.train.patience)
            target = self._folder / ADAPTER_FOLDER
            self._disk.keep_trying(lambda: publish_adapter(chosen, target), ADAPTER_FOLDER, _bytes_of(chosen))
            if self.step < self._loop.plan.steps:
                self._reporter.say(say("training.recorder.validation_loss_fell_no", step=self.step))
            if chosen.step != self.step:
                self._reporter.say(say("training.recorder.adapter_step_has_lowest", step=chosen.step))
            self._write("end", step=self.step, adapter_step=chosen.step)
            self._reporter.saved(target)
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Let the checkpoint at hand be finished, and close the events."""
        if self._saver is not None and (trouble := self._saver.close()):
            self._reporter.say(trouble)
        if self._log is not None:
            self._log.close()
            self._log = None

    def _evaluate(self) -> bool:
        """Evaluate the model if that is due, on every process, and return whether it was done."""
        if self._validator is None or not self._validator.due(self.step) or self._history.has(self.step):
            return False
        found = self._validator.evaluate(self.step, self._stop, self._reporter.evaluating())
        if found is None:
            return False
        found = replace(found, best=self._history.add(self.step, found.loss))
        self._write("validation", **asdict(found))
        self._reporter.evaluated(found)
        return True

    def _save(self, *, again: bool = False) -> None:
        """Begin to write a checkpoint, on the main process; ``again`` if its step has one already."""
        if self._saved == self.step and not again:
            return
        self._saved = self.step
        if self._saver is None:
            return
        began = time.perf_counter()
        self._settle(wait=True)  # one at a time
        state = {**self._state, **self._history.state(self.step)}
        try:
            snapshot = Snapshot.take(self.step, self._trained, self._loop.optimizer, state)
        except NonFiniteError as error:
            self._write("not finite", step=self.step, message=str(error))
            raise
        self._saver.save(snapshot, time.perf_counter() - began)

    def _settle(self, *, wait: bool = False) -> None:
        """Tell of the checkpoint that was finished meanwhile, if any."""
        saved = self._saver.settle(wait=wait) if self._saver else None
        if saved is None:
            return
        for note in saved.notes:
            self._reporter.say(note)
        self._write(
            "checkpoint",
            step=saved.checkpoint.step,
            seconds=saved.seconds,
            paused_seconds=saved.paused_seconds,
            notes=saved.notes,
        )
        self._reporter.saved(saved.checkpoint.folder)

    def _asked(self, *wishes: bool) -> list[bool]:
        """Return for each wish whether any process has it: all must do the same after the same step."""
        if self._accelerator.num_processes == 1:
            return list(wishes)
        asked = torch.tensor([int(wish) for wish in wishes], device=self._accelerator.device)
        return [bool(count) for count in self._accelerator.reduce(asked, reduction="sum").tolist()]

    def _write(self, event: str, **fields: Any) -> None:
        log = self._log
        if log is not None:
            at = time.perf_counter() - self._began
            self._disk.keep_trying(lambda: log.write(event, time=at, **fields), EVENTS, _EVENT_BYTES)


def _bytes_of(checkpoint: Checkpoint) -> int:
    paths = map(checkpoint.folder.joinpath, (*ADAPTER_FILES, *MODEL_FILES))
    return sum(path.stat().st_size for path in paths if path.is_file())
