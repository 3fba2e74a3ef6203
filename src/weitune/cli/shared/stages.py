"""One progress bar after the other, for work that has stages (:class:`weitune.progress.Stage`)."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from weitune.cli.shared.terminal import progress
from weitune.progress import Progress


class Stages:
    """Shows at most one bar; use it in a ``with`` block."""

    def __init__(self) -> None:
        self._bar = ExitStack()

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, title: str) -> Progress:
        """Show a bar for the next piece of work, and return what moves it: called with what is done, and all."""
        self.end()
        return self._bar.enter_context(progress(title, unit="item")).update

    def end(self) -> None:
        self._bar.close()
