"""A row as it stands in a file, before its format is known, and what reading notes besides rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from weitune.data.conversation import Origin
from weitune.data.problems import Problem

BLANK = "with only empty cells"
"""Why a blank row is set aside; reports count it under these words."""


class RawRow(NamedTuple):
    """A row's value, its place, and the problems that are already known."""

    origin: Origin
    value: Any
    problems: tuple[Problem, ...] = ()


class BlankRow(NamedTuple):
    """A row of a table in which every cell is empty."""

    origin: Origin


Raw = RawRow | BlankRow | Problem
"""What a reader yields for a row, or for a fault that loses rows."""


@dataclass(slots=True)
class Notes:
    """What reading a source has noted besides its rows."""

    unused: Counter[str] = field(default_factory=Counter)
    """Fields that nothing reads, with the number of rows that have them."""
    null_fields: int = 0
    """Nulls that were removed from nested fields."""
