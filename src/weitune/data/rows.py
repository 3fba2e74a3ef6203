"""A row as a file has it, before its format is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weitune.data.conversation import Origin
from weitune.data.problems import Problem


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row's value, where it stands, and what is already known to be wrong with it."""

    origin: Origin
    value: Any
    problems: tuple[Problem, ...] = ()
