"""The runs that a server is started with, by the names that requests give."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from weitune.errors import InputError
from weitune.export.llama_models import BASE
from weitune.generate.run import Run


def named_runs(arguments: Sequence[str], open_one: Callable[[str], Run] = Run) -> dict[str, Run]:
    """Return runs by name, from ``FOLDER`` (named like the folder) or ``NAME=FOLDER``, each opened by ``open_one``.

    Raises RunError if one is not a run, InputError if a name is taken.
    """
    runs: dict[str, Run] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=") if not Path(argument).exists() else ("", "", argument)
        run = open_one(path)
        name = name or run.name
        if name in runs or name == BASE:
            raise InputError("serve.named_runs.name_taken", name=name, argument=shlex.quote(f"another-name={path}"))
        runs[name] = run
    return runs
