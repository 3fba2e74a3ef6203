"""The terminal of every command: one console on standard error, progress bars, and how errors look.

Standard output is for results (an answer, a table that may be piped); everything else goes to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

from weitune.errors import WeituneError
from weitune.messages import say
from weitune.progress import Phase, Progress, enter_phase, get_on
from weitune.ranks import rank

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import Task, TaskID
    from rich.text import Text

_UNITS = {
    "answer": "cli.terminal.answer",
    "group": "cli.terminal.group",
    "item": "cli.terminal.item",
    "row": "cli.terminal.row",
    "step": "cli.terminal.step",
}
"""The message that names a unit of work."""
ISSUES = "https://github.com/weitune/weitune/issues"


@cache
def console() -> Console:
    """Return the console on standard error. Text longer than a line is wrapped by the terminal, never by us."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(error: WeituneError) -> None:
    """Write an error's message, then its fix, to standard error."""
    from rich.text import Text

    who = say("cli.terminal.process", rank=rank()) if rank() else ""
    console().print(Text.assemble(who, (say("cli.terminal.error"), "bold red"), error.message))
    if error.fix:
        console().print(Text(error.fix))


def print_bug() -> None:
    """Write the traceback of the exception being handled, and where to report it, to standard error."""
    import traceback

    traceback.print_exc()
    print(say("cli.terminal.bug", issues=ISSUES), file=sys.stderr)


def quiet_libraries(*, models: bool = True) -> None:
    """Import the libraries, and keep their warnings and loading bars off the screen; their errors still show.

    Call it before a model is loaded, or without ``models`` before a tokenizer is. weitune itself reports what a user
    must know.
    """
    import logging
    import warnings

    if models:
        from weitune.model.lean_imports import import_models

        import_models()
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("transformers", "peft", "torch", "accelerate", "bitsandbytes"):
        warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        logging.getLogger(library).setLevel(logging.ERROR)


def working(text: str) -> AbstractContextManager[object]:
    """Show ``text`` with a spinner while the block runs; nothing if standard error is not a terminal."""
    return console().status(text) if console().is_terminal else nullcontext()


class Bar:
    """A progress bar on standard error; where that is not a terminal, it draws nothing."""

    def __init__(self, display: Display, task: TaskID) -> None:
        self._display, self._task = display, task

    def advance(self, done: float = 1, note: str = "") -> None:
        """Move on by ``done`` units; ``note``, such as the loss, is shown at the end of the line."""
        self._display.update(self._task, advance=done, note=note)

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._display.update(self._task, completed=done, total=total, note=note)
        get_on(int(done), None if total is None else int(total))


@contextmanager
def progress(title: str, total: float | None = None, unit: str = "step") -> Iterator[Bar]:
    """Show a bar with the rate and the time left while the block runs: ``with progress("training", 100) as bar``."""
    from rich import progress as bars
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        """Units per second, or seconds per unit when they are slow."""

        def render(self, task: Task) -> Text:
            return Text(rate(task.finished_speed or task.speed, unit), style="dim")

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=30),
        bars.MofNCompleteColumn(),
        Rate(),
        bars.TextColumn(say("cli.terminal.left"), style="dim"),
        bars.TimeRemainingColumn(compact=True),
        bars.TextColumn("{task.fields[note]}"),
    )
    with bars.Progress(*columns, console=console(), disable=not console().is_terminal) as display:
        yield Bar(display, display.add_task(title, total=total, note=""))


class Stages:
    """Shows one progress bar after another, for work that has stages; use it in a ``with`` block."""

    def __init__(self, phase: Phase | None = None) -> None:
        """All stages are of the ``phase``, if one is given; a model that is loaded within one has its own."""
        self._bar, self._phase = ExitStack(), phase

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, title: str) -> Progress:
        """Replace the bar by one for the stage ``title``; return the function that moves it (a :data:`.Stage`)."""
        self.end()
        update = self._bar.enter_context(progress(title, unit="item")).update

        def told(done: int, total: int | None) -> None:
            if self._phase is not None:
                enter_phase(self._phase)
            update(done, total)

        return told

    def end(self) -> None:
        self._bar.close()


def rate(units_per_second: float | None, unit: str) -> str:
    """Return a speed in three digits: ``12.3 step/s``, or ``4.56 s/step`` when slower than one a second."""
    if not units_per_second:
        return ""
    unit = say(_UNITS[unit]) if unit in _UNITS else unit
    if units_per_second >= 1:
        return f"{units_per_second:.3g} {unit}/s" if units_per_second < 1000 else f"{units_per_second:.0f} {unit}/s"
    return f"{1 / units_per_second:.3g} s/{unit}"
