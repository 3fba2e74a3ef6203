"""Callbacks of a run for the program that started it; the command line draws a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weitune.progress import Progress
from weitune.training.loop import StepRecord

if TYPE_CHECKING:
    from weitune.model.load.locate import ModelFiles
    from weitune.model.load.tokenizer import TokenizerFraming
    from weitune.recipe.schema import Recipe
    from weitune.training.validation_history import Evaluation


class Reporter:
    """Base class with no-op callbacks; override the ones you need."""

    def say(self, line: str) -> None:
        """Called with a line for the user: what is trained, on what, and everything unusual, once."""

    def beginning(self, folder: Path) -> None:
        """Called first, with the folder of the run, which may not be there yet."""

    def opened(self, recipe: Recipe, files: ModelFiles, framed: TokenizerFraming) -> None:
        """Called when the base has been found and its tokenizer loaded, before its weights are."""

    def preparing(self) -> Progress | None:
        """Return a function to call with (rows done, rows in all or None) while data are prepared."""
        return None

    def answering(self) -> Progress | None:
        """Return a function to call with (learned tokens, learned tokens needed) while prompts to keep are answered."""
        return None

    def referring(self) -> Progress | None:
        """Return a function to call with (groups done, groups in all) while the reference of answers is measured."""
        return None

    def started(self, folder: Path, done: int, steps: int, log_every: int) -> None:
        """Called before step ``done`` + 1 of ``steps``, with how often the user wants a log line."""

    def stepped(self, record: StepRecord) -> None:
        """Called after an optimizer step."""

    def evaluating(self) -> Progress | None:
        """Return a function to call with (passes done, passes in all) while the validation loss is measured."""
        return None

    def evaluated(self, evaluation: Evaluation) -> None:
        """Called after an evaluation."""

    def saved(self, folder: Path) -> None:
        """Called when a checkpoint or the final adapter is on the disk."""

    def ended(self) -> None:
        """Called when the loop is over, for whatever reason."""
