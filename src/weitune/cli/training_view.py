"""What a person sees while a run trains: a few lines, then a bar with the loss, and a log line now and then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from weitune.cli.terminal import Bar, console, progress
from weitune.training.loop import StepRecord
from weitune.training.reporter import Reporter
from weitune.training.validation import Evaluation

_SHORT = 100
"""Characters of a sample that a line shows."""


class TrainingView(Reporter):
    """Draw a run on standard error. Without a terminal there is no bar, only the lines."""

    def __init__(self) -> None:
        """Begin with an empty screen."""
        self._bars = ExitStack()
        self._bar: Bar | None = None
        self._steps = 0
        self._every = 10

    def __enter__(self) -> TrainingView:
        """Return the view itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bars.close()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        console().print(line, markup=False)

    def preparing(self) -> Callable[[int, int | None], None]:
        """Show rows being prepared."""
        self._bar = self._bars.enter_context(progress("preparing data", unit="row"))
        return self._prepared

    def _prepared(self, done: int, total: int | None) -> None:
        if self._bar is not None:
            self._bar.update(done, total)

    def started(self, folder: Path, done: int, steps: int, log_every: int) -> None:
        """Change the bar for one over the optimizer steps."""
        self._bars.close()
        self._steps, self._every = steps, log_every
        self.say(f"training into {folder}" + (f", from step {done + 1} of {steps}" if done else f", {steps} steps"))
        self._bar = self._bars.enter_context(progress("training", steps))
        self._bar.update(done, steps)

    def stepped(self, record: StepRecord) -> None:
        """Move the bar; print a log line every so often."""
        if self._bar is not None:
            self._bar.update(record.step, note=f"loss {record.loss:.3f}")
        if record.step % self._every == 0 or record.step in {1, self._steps}:
            self.say(
                f"step {record.step}/{self._steps}  loss {record.loss:.4f}  lr {record.learning_rate:.2e}  "
                f"grad {record.grad_norm:.2f}  {record.tokens_per_second:,.0f} tokens/s"
            )

    def evaluating(self) -> Callable[[int, int], None]:
        """Show how far an evaluation is at the bar's end."""
        return self._evaluating

    def _evaluating(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.advance(0, note=f"validating {done}/{total}")

    def evaluated(self, found: Evaluation) -> None:
        """Print the validation loss and the first sample answer."""
        best = "  best so far" if found.best and found.step else ""
        self.say(f"step {found.step}  validation loss {found.loss:.4f}  perplexity {found.perplexity:.2f}{best}")
        for sample in found.samples[:1]:
            self.say(f"  {_short(sample.prompt)}  →  {_short(sample.answer)}")

    def saved(self, folder: Path) -> None:
        """Name a checkpoint that was written."""
        self.say(f"saved {folder}")

    def ended(self) -> None:
        """Take the bar away."""
        self._bars.close()
        self._bar = None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"
