"""Rows inside a JSON object that is not a row itself.

    {"data": [{…}, {…}]}                                     its only list of objects: each element is a row
    {"instruction": ["q1", "q2"], "output": ["a1", "a2"]}    columns
    {"instruction": {"0": "q1"}, "output": {"0": "a1"}}      columns by index, as pandas writes a data frame
    {"0": {"instruction": …, "output": …}}                   rows by index or by name
    {"columns": ["instruction", …], "data": [["q1", …]]}     cells, and the names of their columns

An object with the fields of a known format is a row itself if they are strings or lists of turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weitune.data.formats.dialogues import recognise
from weitune.data.problems import Problem, data_problem, shown_name

_TRAIN = ("train", "training", "test", "validation", "valid", "eval", "dev")
_USUAL = frozenset((*_TRAIN, "data", "dataset", "rows", "examples", "items", "instances", "samples", "records"))
"""Usual names of lists of rows."""
_LISTS = frozenset({"messages", "conversations", "conversation"})
"""Fields of a row that hold a list, not a string."""
_EXAMINED = 10
"""Elements of a list that are examined to decide whether it is a list of rows."""


@dataclass(frozen=True, slots=True)
class ContainedRows:
    """Rows inside an object: the list under ``key``, or ``rows``; ``unread`` are the names of its other fields."""

    key: str | None = None
    rows: Sequence[Any] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowCriteria:
    """How rows are recognised: by the fields of a format, or by the ``columns`` that a recipe maps."""

    columns: frozenset[str] = frozenset()
    blank: frozenset[str] = frozenset()
    """Those of the columns that may be empty: a null there, in a table, is a blank text."""

    def is_row(self, value: object) -> bool:
        if not isinstance(value, dict):
            return False
        return self.columns.issubset(value) if self.columns else recognise(value) is not None

    def decides(self, key: str) -> bool:
        return key in self.columns if self.columns else recognise({key: None}) is not None

    def holds_rows(self, key: str, value: object) -> bool:
        if not isinstance(value, list):
            return False
        objects = [item for item in value[:_EXAMINED] if isinstance(item, dict)]
        return bool(objects) and (key in _USUAL or any(map(self.is_row, objects)))


def contained_rows(
    value: Mapping[str, Any], criteria: RowCriteria, part: str | None = None
) -> ContainedRows | Problem | None:
    """Return the rows inside an object, or why they cannot be read; None if the object is a row itself.

    ``part`` is the field that contains them, if the user named it.
    """
    if part is not None:
        return _named(value, criteria, part)
    if (deciding := [key for key in value if criteria.decides(key)]) or criteria.is_row(value):
        if len(deciding) == 1 and _holds_dialogues(value[deciding[0]]):
            return ContainedRows(deciding[0], unread=_others(value, deciding))
        return _columns(value, deciding or list(value))
    if value and all(criteria.is_row(item) and contained_rows(item, criteria) is None for item in value.values()):
        return ContainedRows(rows=list(value.values()))
    return _named_cells(value) or _only_list(value, criteria) or _within(value, criteria)


def _only_list(value: Mapping[str, Any], criteria: RowCriteria) -> ContainedRows | Problem | None:
    keys = [key for key in value if criteria.holds_rows(key, value[key])]
    keys = [key for key in keys if any(map(criteria.is_row, value[key][:_EXAMINED]))] or keys
    if len(keys) > 1:
        return several_lists({key: len(value[key]) for key in keys})
    return ContainedRows(keys[0], unread=_others(value, keys)) if keys else None


def several_lists(lists: Mapping[str, int | None]) -> Problem:
    """Return the fault of an object with several lists of rows, given as lengths by name (None if unknown)."""
    names = ", ".join(f"`{shown_name(key)}`" + (f" ({n:,})" if n is not None else "") for key, n in lists.items())
    return data_problem("data.containers.several_lists", names=names, first=shown_name(next(iter(lists))))


def _named(value: Mapping[str, Any], criteria: RowCriteria, part: str) -> ContainedRows | Problem:
    named = value.get(part)
    if isinstance(named, list):
        return ContainedRows(part, unread=_others(value, [part]))
    if isinstance(named, dict) and (inside := contained_rows(named, criteria)) is not None:
        return _rows_below(value, part, inside)
    for key, below in value.items():
        if key in _USUAL and isinstance(below, dict) and part in below:
            return _named(below, criteria, part)
    return missing_part(part, [key for key in value if isinstance(value[key], dict | list)])


def missing_part(part: str, there: Sequence[str]) -> Problem:
    """Return the fault of an object without rows under ``part``; ``there`` are its fields that may have some."""
    if part in there:
        return data_problem("data.containers.part_without_rows", part=shown_name(part))
    names = ", ".join(f"`{shown_name(key)}`" for key in there)
    message = "data.containers.missing_part" if names else "data.containers.no_parts"
    return data_problem(message, part=shown_name(part), names=names)


def _within(value: Mapping[str, Any], criteria: RowCriteria) -> ContainedRows | Problem | None:
    """Return the rows inside an object in a field, as in ``{"train": {"instruction": […], "output": […]}}``."""
    objects = {key: below for key, below in value.items() if key in _USUAL and isinstance(below, dict)}
    inside = {key: rows for key, below in objects.items() if (rows := contained_rows(below, criteria)) is not None}
    if len(inside) > 1:
        return several_lists(dict.fromkeys(inside))
    for key, rows in inside.items():
        return _rows_below(value, key, rows)
    if len(value) == 1 and value[key := next(iter(value))] == [] and key in _USUAL:
        return ContainedRows(key)
    return None


def _rows_below(value: Mapping[str, Any], key: str, inside: ContainedRows | Problem) -> ContainedRows | Problem:
    if isinstance(inside, Problem):
        return inside
    rows = inside.rows if inside.key is None else value[key][inside.key]
    return ContainedRows(rows=rows, unread=_others(value, [key]))


def _columns(value: Mapping[str, Any], deciding: Sequence[str]) -> ContainedRows | Problem | None:
    """Return the rows of an object of columns; None if a deciding field is not a column, so that it is a row."""
    if all(_is_list_column(key, value[key]) for key in deciding):
        columns = {key: column for key, column in value.items() if isinstance(column, list)}
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1:
            return _unequal(lengths)
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        return ContainedRows(rows=rows, unread=_others(value, columns))
    if all(_is_indexed_column(value[key]) for key in deciding):
        tables = {key: column for key, column in value.items() if isinstance(column, dict)}
        index = list(tables[deciding[0]])
        if any(list(column) != index for column in tables.values()):
            return _unequal({key: len(column) for key, column in tables.items()})
        rows = [{key: column[at] for key, column in tables.items()} for at in index]
        return ContainedRows(rows=rows, unread=_others(value, tables))
    return None


def _holds_dialogues(value: object) -> bool:
    """Return whether ``value`` is a list of dialogues, each of which has a list of messages."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) and any(isinstance(item.get(key), list) for key in _LISTS) for item in value)


def _is_list_column(key: str, value: object) -> bool:
    """Return whether ``value`` is a column: a list of what rows have under ``key``, rather than what one row has."""
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(item, list) for item in value):
        return True
    if key in _LISTS:
        return all(isinstance(item, str) and item.lstrip().startswith("[") for item in value)
    return not any(isinstance(item, dict | list) for item in value)


def _is_indexed_column(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(key.isascii() and key.isdigit() for key in value)


def _unequal(lengths: Mapping[str, int]) -> Problem:
    shown = ", ".join(f"`{shown_name(key)}` {n:,}" for key, n in lengths.items())
    return data_problem("data.containers.unequal_columns", lengths=shown)


def _named_cells(value: Mapping[str, Any]) -> ContainedRows | Problem | None:
    names, data = value.get("columns"), value.get("data")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return None
    if not (isinstance(data, list) and data and all(isinstance(cells, list) for cells in data)):
        return None
    for row, cells in enumerate(data, 1):
        if len(cells) != len(names):
            return data_problem("data.containers.wrong_number_of_cells", row=row, columns=len(names), cells=len(cells))
    rows = [dict(zip(names, cells, strict=True)) for cells in data]
    return ContainedRows(rows=rows, unread=_others(value, ["columns", "data", "index"]))


def _others(value: Mapping[str, Any], read: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(key for key in value if key not in read)
