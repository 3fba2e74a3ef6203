"""Options of the commands that open the model of a run, or of an adapter that was made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weitune.messages import say

if TYPE_CHECKING:
    from weitune.generate.run import Run

Command = Callable[..., Any]


def accepting_changed_base(command: Command) -> Command:
    """Give a command ``--accept-changed-base``."""
    return click.option(
        "--accept-changed-base", is_flag=True,
        help="Use the base model that is here even if it is not the one that the run was trained on.",
    )(command)  # fmt: skip


def base_of_plain_adapter(command: Command) -> Command:
    """Give a command ``--model``."""
    return click.option(
        "--model", metavar="BASE", help="Base of an adapter that was made elsewhere, if not the one that it names."
    )(command)


def system_of_plain_adapter(command: Command) -> Command:
    """Give a command ``--system``."""
    return click.option("--system", metavar="TEXT", help="System prompt of an adapter that was made elsewhere.")(
        command
    )


def opened(
    paths: Sequence[str | Path], *, model: str | None, system: str | None = None, accept_changed_base: bool
) -> Callable[[str | Path], Run]:
    """Return what opens each of ``paths``, a run or a plain adapter.

    Raises click.UsageError if there is a ``model`` or ``system`` for plain adapters and none of them is one.
    """
    from weitune.generate.plain_adapter import is_plain_adapter, open_run

    plain = {str(path) for path in paths if is_plain_adapter(Path(path))}
    for option, value in (("--model", model), ("--system", system)):
        if value is not None and not plain and all(Path(path).is_dir() for path in paths):
            raise click.UsageError(say("cli.run_options.adapter_was_made_elsewhere", option=option))

    def open_one(path: str | Path) -> Run:
        given = {"model": model, "system": system} if str(path) in plain else {}
        return open_run(path, accept_changed_base=accept_changed_base, say=note, **given)

    return open_one


def note(line: str) -> None:
    """Tell the user a line on standard error."""
    from weitune.cli.shared.terminal import console

    console().print(say("cli.run_options.note", line=line), markup=False)
