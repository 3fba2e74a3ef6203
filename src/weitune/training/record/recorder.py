"""What happens after each step of a run: events, an evaluation or a checkpoint when one is due, the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from weitune.forecast.memory_watch import MemoryWatch
from weitune.messages import say
from weitune.run.checkpoint import Checkpoint
from weitune.run.disk_retry import DiskRetry
from weitune.run.preference_figures import fields_of
from weitune.training.build import pack_matrices
from weitune.training.loop import StepRecord
from weitune.training.prepared_run import PreparedRun
from weitune.training.record.checkpoint_writer import CheckpointWriter
from weitune.training.record.event_writer import EventWriter
from weitune.training.resume.snapshot import restore
from weitune.training.session import Session
from weitune.training.validation import Validator
from weitune.training.validation_history import ValidationHistory, chosen_checkpoint


class Recorder:
    """A :class:`.Watcher` that decides after each step what is due; only the main process writes it down."""

    def __init__(self, session: Session, run: PreparedRun, memory: MemoryWatch, validator: Validator | None) -> None:
        self._session, self._run, self._memory, self._validator = session, run, memory, validator
        self._reporter, self._stop = session.reporter, session.stop
        self._train, self._steps = run.loop.train, run.loop.plan.steps
        disk = DiskRetry(session.folder, session.reporter.say, lambda: bool(session.stop))
        self._events = EventWriter(session.folder, disk)
        self._checkpoints = (
            CheckpointWriter(session.folder, run, disk, self._events, session.reporter) if session.main else None
        )
        self._history = ValidationHistory()
        self._saved = 0
        """Step of the newest checkpoint."""
        self.step = 0
        """Steps done so far."""

    @property
    def complete(self) -> bool:
        """Whether the run is over: all steps are done, or early stopping has ended it."""
        return self.step == self._steps or self._history.patience_exhausted(self._train.patience)

    def begin(self, checkpoint: Checkpoint | None, notes: Sequence[str]) -> None:
        """Restore ``checkpoint`` if there is one, and open the events; the first one has the ``notes``."""
        if checkpoint is not None:
            restore(checkpoint, self._run.trainable.trained, self._run.loop.optimizer)
            pack_matrices(self._run.trainable, self._run.loop.memory)  # restoring may replace frozen matrices
            self.step = self._saved = checkpoint.step
            self._history = ValidationHistory.from_state(checkpoint.state)
        if self._session.main:
            self._events.open(self.step, steps=self._steps, notes=notes)

    def catch_up(self) -> None:
        """Evaluate the model before the first step, or where a stop had come before an evaluation."""
        if self._evaluate() and self.step:
            self._save(again=True)  # the checkpoint is there, but without its validation loss

    def stepped(self, record: StepRecord) -> bool:
        """Write the step down, save a checkpoint when one is due, and return whether to go on."""
        self.step = self._session.reached.step = record.step
        self._events.write("step", **fields_of(record))
        self._reporter.stepped(record)
        self._announce()
        low_memory = self._memory.low_memory()
        if low_memory:
            self._reporter.say(low_memory)
            self._events.write("memory", step=self.step, message=low_memory)
        stopping, wanted = self._any_process(bool(self._stop), self._stop.checkpoint or bool(low_memory))
        if wanted:
            self._stop.checkpoint = False
        last = self.step == self._steps
        evaluated = (last or not stopping) and self._evaluate()
        due = self.step % self._train.checkpoint_every == 0 or last
        if due or evaluated or wanted or stopping:
            self._save()
        if stopping and not self.complete:
            self._announce(wait=True)
            self._events.write("stop", step=self.step, reason=self._stop.reason)
        return not (stopping or self.complete)

    def failed(self, record: StepRecord) -> None:
        self._events.write("not finite", **fields_of(record))

    def finish(self) -> None:
        """Wait for the last checkpoint, and publish the adapter of the last or the best one as the final adapter."""
        if self._checkpoints is not None:
            self._checkpoints.announce(wait=True)
            chosen = chosen_checkpoint(self._session.folder, self.step, self._train.patience)
            target = self._checkpoints.publish(chosen)
            if self.step < self._steps:
                self._reporter.say(say("training.recorder.stopped_early", step=self.step))
            if chosen.step != self.step:
                self._reporter.say(say("training.recorder.best_adapter", step=chosen.step))
            self._events.write("end", step=self.step, adapter_step=chosen.step)
            self._reporter.saved(target)
        self._session.accelerator.wait_for_everyone()

    def close(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()
        self._events.close()

    def _evaluate(self) -> bool:
        """Evaluate the model if that is due, on every process, and return whether it was done."""
        if self._validator is None or not self._validator.due(self.step) or self._history.has(self.step):
            return False
        evaluation = self._validator.evaluate(self.step, self._stop, self._reporter.evaluating())
        if evaluation is None:
            return False
        evaluation = replace(evaluation, best=self._history.add(self.step, evaluation.loss))
        event = evaluation.event()
        self._events.write(event.pop("event"), **event)
        self._reporter.evaluated(evaluation)
        return True

    def _save(self, *, again: bool = False) -> None:
        if self._saved == self.step and not again:
            return
        self._saved = self.step
        if self._checkpoints is not None:
            self._checkpoints.save(self.step, self._history.state(self.step))

    def _announce(self, *, wait: bool = False) -> None:
        if self._checkpoints is not None:
            self._checkpoints.announce(wait=wait)

    def _any_process(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process: all must act alike after the same step."""
        accelerator = self._session.accelerator
        if accelerator.num_processes == 1:
            return list(flags)
        counts = torch.tensor([int(flag) for flag in flags], device=accelerator.device)
        return [bool(count) for count in accelerator.reduce(counts, reduction="sum").tolist()]
