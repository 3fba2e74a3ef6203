"""A row as a file has it, before its format is known."""

from __future__ import annotations

from typing import Any, NamedTuple

from weitune.data.conversation import Origin
from weitune.data.problems import Problem


class RawRow(NamedTuple):
    """A row's value, where it stands, and what is already known to be wrong with it."""

    origin: Origin
    value: Any
    problems: tuple[Problem, ...] = ()
