"""Read single rows of preferences in tests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.read.reading_rows import HERE
from weitune.data.formats.kinds import ANY_KIND
from weitune.data.formats.parse import Options, RowReader
from weitune.data.preference.values import Judged, Pair
from weitune.data.problems import FaultyRow, Problem


def read_pair(row: Any, **options: Any) -> Pair:
    read = RowReader(Options(kinds=ANY_KIND, **options)).read(row, HERE)
    assert isinstance(read, Pair)
    return read


def read_judged(row: Any, **options: Any) -> Judged:
    read = RowReader(Options(kinds=ANY_KIND, **options)).read(row, HERE)
    assert isinstance(read, Judged)
    return read


def unread(row: Any) -> dict[str, int]:
    """Return the fields that nothing read."""
    reader = RowReader(Options(kinds=ANY_KIND))
    reader.read(row, HERE)
    return dict(reader.notes.unused)


def found(row: Any) -> list[tuple[str, str]]:
    """Return kind and field of every fault of a row; each has a place and a fix."""
    return [(problem.kind, problem.field) for problem in faults(row)]


def faults(row: Any) -> list[Problem]:
    with pytest.raises(FaultyRow) as error:
        RowReader(Options(kinds=ANY_KIND)).read(row, HERE)
    assert all(problem.fix and problem.place.startswith("rows.json row 4") for problem in error.value.problems)
    return list(error.value.problems)
