"""What a run tells whoever started it. The base class is silent; the command line draws a bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weitune.progress import Progress
from weitune.training.loop import StepRecord

if TYPE_CHECKING:
    from weitune.training.validation_history import Evaluation


class Reporter:
    """Base class with no-op callbacks; override the ones you need."""

    def say(self, line: str) -> None:
        """Hear one line worth knowing: what is trained, on what, and everything unusual, once."""

    def preparing(self) -> Progress | None:
        """Return a function to call with (rows done, rows in all or None) while data are prepared."""
        return None

    def started(self, folder: Path, done: int, steps: int, log_every: int) -> None:
        """Hear that step ``done`` + 1 of ``steps`` begins, and how often the user wants a log line."""

    def stepped(self, record: StepRecord) -> None:
        """Hear of an optimizer step."""

    def evaluating(self) -> Progress | None:
        """Return a function to call with (passes done, passes in all) while the validation loss is measured."""
        return None

    def evaluated(self, evaluation: Evaluation) -> None:
        """Hear the figures and samples of an evaluation."""

    def saved(self, folder: Path) -> None:
        """Hear that a checkpoint or the final adapter is on the disk."""

    def ended(self) -> None:
        """Hear that the loop is over, for whatever reason."""
