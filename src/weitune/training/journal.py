"""What a run writes down while it trains: an event for every step, a checkpoint now and then, the adapter at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weitune.data.plan import Plan
from weitune.recipe.schema import Recipe
from weitune.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    publish,
    rotate,
    save_checkpoint,
    write_adapter,
)
from weitune.training.events import EventLog
from weitune.training.folder import ADAPTER_FOLDER
from weitune.training.loop import StepRecord
from weitune.training.reporter import Reporter
from weitune.training.signals import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel


class Journal:
    """A :class:`~weitune.training.loop.Watcher` that writes into the run's folder; only the main process writes."""

    def __init__(
        self,
        folder: Path,
        model: PeftModel,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        plan: Plan,
        state: Mapping[str, Any],
        reporter: Reporter,
        stop: StopRequest,
        accelerator: Accelerator,
    ) -> None:
        """Keep what checkpoints are made of; ``state`` goes into each of them."""
        self._folder, self._model, self._optimizer, self._plan = folder, model, optimizer, plan
        self._train, self._state = recipe.train, state
        self._reporter, self._stop, self._accelerator = reporter, stop, accelerator
        self._log: EventLog | None = None
        self._began = time.perf_counter()
        self._saved = 0
        self.step = 0
        """Steps done so far."""

    def begin(self, checkpoint: Checkpoint | None) -> int:
        """Restore ``checkpoint`` if there is one, open the events, and return how many steps are done."""
        if checkpoint is not None:
            load_checkpoint(checkpoint, self._model, self._optimizer)
            self.step = self._saved = checkpoint.step
        if self._accelerator.is_main_process:
            self._log = EventLog(self._folder, keep_steps=self.step)
            self._began = time.perf_counter() - self._log.seconds
            self._write("resume" if self.step else "start", step=self.step, steps=self._plan.steps)
        return self.step

    def stepped(self, record: StepRecord) -> bool:
        """Write the step down, save a checkpoint when one is due, and return whether to go on."""
        self.step = record.step
        self._write("step", **asdict(record))
        self._reporter.stepped(record)
        go_on = not self._asked_to_stop()
        if not go_on or record.step % self._train.checkpoint_every == 0 or record.step == self._plan.steps:
            self._save()
        return go_on

    def failed(self, record: StepRecord) -> None:
        """Write down the numbers of a step that is not finite."""
        self._write("not finite", **asdict(record))

    def finish(self) -> None:
        """Publish the final adapter."""
        if self._accelerator.is_main_process:
            target = self._folder / ADAPTER_FOLDER
            partial = self._folder / f".{ADAPTER_FOLDER}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            write_adapter(partial, self._model)
            publish(partial, target)
            self._reporter.saved(target)
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Close the events."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _save(self) -> None:
        if self._accelerator.is_main_process and self._saved < self.step:
            began = time.perf_counter()
            checkpoint = save_checkpoint(self._folder, self.step, self._model, self._optimizer, self._state)
            rotate(self._folder, self._train.keep_checkpoints)
            self._write("checkpoint", step=self.step, seconds=time.perf_counter() - began)
            self._reporter.saved(checkpoint.folder)
        self._saved = self.step
        self._accelerator.wait_for_everyone()

    def _asked_to_stop(self) -> bool:
        """Return whether any process was asked to stop: all must stop after the same step."""
        if self._accelerator.num_processes == 1:
            return bool(self._stop)
        asked = torch.tensor(int(bool(self._stop)), device=self._accelerator.device)
        return bool(self._accelerator.reduce(asked, reduction="sum").item())

    def _write(self, event: str, **fields: Any) -> None:
        if self._log is not None:
            self._log.write(event, time=time.perf_counter() - self._began, **fields)
