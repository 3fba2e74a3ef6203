"""What all work on a recipe shows: lines, and a bar for what is being done, on standard error."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from weitune.cli.shared.terminal import console, progress
from weitune.messages import say
from weitune.progress import Progress, enter_phase
from weitune.training.reporter import Reporter


class ProgressView(Reporter):
    """Draw one thing at a time. Without a terminal there is no picture, only the lines."""

    def __init__(self) -> None:
        self._shown = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shown.close()

    def say(self, line: str) -> None:
        console().print(line, markup=False)

    def preparing(self) -> Progress:
        enter_phase("reading")
        return self._bar(say("cli.training_view.preparing_data"), "row")

    def _bar(self, title: str, unit: str) -> Progress:
        """Show a bar in place of what is shown, and return what moves it."""
        self._shown.close()
        return self._shown.enter_context(progress(title, unit=unit)).update
