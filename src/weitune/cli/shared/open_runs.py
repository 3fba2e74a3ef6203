"""Open the runs or plain adapters that are a command's arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weitune.messages import say

if TYPE_CHECKING:
    from weitune.generate.run import Run


def opened(
    paths: Sequence[str | Path], *, model: str | None, system: str | None = None, accept_changed_base: bool
) -> Callable[[str | Path], Run]:
    """Return a function that opens each of ``paths``, a run or a plain adapter.

    Raises click.UsageError if there is a ``model`` or ``system`` for plain adapters and none of them is one.
    """
    from weitune.generate.plain_adapter import is_plain_adapter, open_run

    plain = {str(path) for path in paths if is_plain_adapter(Path(path))}
    for option, value in (("--model", model), ("--system", system)):
        if value is not None and not plain and all(Path(path).is_dir() for path in paths):
            raise click.UsageError(say("cli.open_runs.for_plain_adapters", option=option))

    def open_one(path: str | Path) -> Run:
        given = {"model": model, "system": system} if str(path) in plain else {}
        return open_run(path, accept_changed_base=accept_changed_base, say=note, **given)

    return open_one


def note(line: str) -> None:
    """Tell the user a line on standard error."""
    from weitune.cli.shared.terminal import console

    console().print(say("cli.open_runs.note", line=line), markup=False)
