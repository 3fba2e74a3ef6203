"""What every command shares of the terminal: one console on standard error, a progress bar, and how errors look.

Standard output belongs to results (an answer, a table that someone pipes on); everything said beside them comes here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from weitune.errors import WeituneError
from weitune.messages import say
from weitune.ranks import rank

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID
    from rich.text import Text

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


def quiet_libraries() -> None:
    """Keep the libraries' warnings and loading bars off the screen; their errors still show.

    Call it in a command that loads a model, before it does. What a user must know, weitune says itself.
    """
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("transformers", "peft", "torch", "accelerate", "bitsandbytes"):
        warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        logging.getLogger(library).setLevel(logging.ERROR)


def working(text: str) -> AbstractContextManager[object]:
    """Show ``text`` with a moving sign while the block runs; where standard error is not a terminal, nothing."""
    return console().status(text) if console().is_terminal else nullcontext()


class Bar:
    """A progress bar on standard error; where that is not a terminal, it draws nothing."""

    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display, self._task = display, task

    def advance(self, done: float = 1, note: str = "") -> None:
        """Move on by ``done`` units; ``note`` stands at the line's end, such as the loss."""
        self._display.update(self._task, advance=done, note=note)

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._display.update(self._task, completed=done, total=total, note=note)


@contextmanager
def progress(title: str, total: float | None = None, unit: str = "step") -> Iterator[Bar]:
    """Show a bar with the rate and the time left while the block runs: ``with progress("training", 100) as bar``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units per second, or seconds per unit when they are slow."""

        def render(self, task: Task) -> Text:
            return Text(rate(task.finished_speed or task.speed, unit), style="dim")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        Rate(),
        TextColumn(say("cli.terminal.left"), style="dim"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console(), disable=not console().is_terminal) as display:
        yield Bar(display, display.add_task(title, total=total, note=""))


def rate(units_per_second: float | None, unit: str) -> str:
    """Return a speed in three digits: ``12.3 step/s``, or ``4.56 s/step`` when slower than one a second."""
    if not units_per_second:
        return ""
    if units_per_second >= 1:
        return f"{units_per_second:.3g} {unit}/s" if units_per_second < 1000 else f"{units_per_second:.0f} {unit}/s"
    return f"{1 / units_per_second:.3g} s/{unit}"
