"""Which rows a JSON object holds that is not a row itself.

    {"data": [{…}, {…}]}                                     the elements of its one list of objects
    {"instruction": ["q1", "q2"], "output": ["a1", "a2"]}    columns
    {"instruction": {"0": "q1"}, "output": {"0": "a1"}}      columns by index, as pandas writes a frame
    {"0": {"instruction": …, "output": …}}                   rows by index or by name
    {"columns": ["instruction", …], "data": [["q1", …]]}     cells, with the names of their columns

An object that has the fields of a known format, as texts or lists of turns, is a row and stays one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weitune.data.formats.parse import recognise
from weitune.data.problems import Problem, data_problem, shown_name

_TRAIN = ("train", "training", "test", "validation", "valid", "eval", "dev")
_USUAL = frozenset((*_TRAIN, "data", "dataset", "rows", "examples", "items", "instances", "samples", "records"))
"""Names under which people keep rows."""
_LISTS = frozenset({"messages", "conversations", "conversation"})
"""Fields that hold a list in a row, not a text."""
_LOOKED_AT = 10
"""Elements of a list that are looked at to tell whether it holds rows."""


@dataclass(frozen=True, slots=True)
class Held:
    """Rows that an object holds: under ``key``, as a list, or all of ``rows``; ``unread`` are its other fields."""

    key: str | None = None
    rows: Sequence[Any] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows are known: by the fields of a format, or by the names of the columns that a recipe maps."""

    columns: frozenset[str] = frozenset()

    def is_row(self, value: object) -> bool:
        """Tell whether ``value`` has the fields of a row."""
        if not isinstance(value, dict):
            return False
        return self.columns.issubset(value) if self.columns else recognise(value) is not None

    def decides(self, key: str) -> bool:
        """Tell whether a field of this name alone makes an object a row."""
        return key in self.columns if self.columns else recognise({key: None}) is not None

    def holds_rows(self, key: str, value: object) -> bool:
        """Tell whether ``value`` under ``key`` is a list of rows, or of objects under a name that is usual for rows."""
        if not isinstance(value, list):
            return False
        objects = [item for item in value[:_LOOKED_AT] if isinstance(item, dict)]
        return bool(objects) and (key in _USUAL or any(map(self.is_row, objects)))


def contents(value: Mapping[str, Any], shape: Shape, part: str | None = None) -> Held | Problem | None:
    """Return the rows that an object holds, or what stands against reading them; None if it is a row.

    ``part`` names the field that has them.
    """
    if part is not None:
        return _named(value, shape, part)
    if (deciding := [key for key in value if shape.decides(key)]) or shape.is_row(value):
        if len(deciding) == 1 and _holds_dialogues(value[deciding[0]]):
            return Held(deciding[0], unread=_others(value, deciding))
        return _columns(value, deciding or list(value))
    if value and all(shape.is_row(item) and contents(item, shape) is None for item in value.values()):
        return Held(rows=list(value.values()))
    return _cells(value) or _listed(value, shape) or _within(value, shape)


def _listed(value: Mapping[str, Any], shape: Shape) -> Held | Problem | None:
    """Return the one list of rows among the fields of an object."""
    keys = [key for key in value if shape.holds_rows(key, value[key])]
    keys = [key for key in keys if any(map(shape.is_row, value[key][:_LOOKED_AT]))] or keys
    if len(keys) > 1:
        return several([(key, len(value[key])) for key in keys])
    return Held(keys[0], unread=_others(value, keys)) if keys else None


def several(lists: Sequence[tuple[str, int | None]]) -> Problem:
    """Return the fault of an object with several ``lists`` (name, length) of rows."""
    found = ", ".join(f"`{shown_name(key)}`" + (f" ({n:,})" if n is not None else "") for key, n in lists)
    return data_problem("data.containers.several_lists_rows", found=found, lists=shown_name(lists[0][0]))


def _named(value: Mapping[str, Any], shape: Shape, part: str) -> Held | Problem:
    held = value.get(part)
    if isinstance(held, list):
        return Held(part, unread=_others(value, [part]))
    inner = contents(held, shape) if isinstance(held, dict) else None
    if isinstance(inner, Problem):
        return inner
    if inner is not None and isinstance(held, dict):
        return Held(rows=_rows(held, inner), unread=_others(value, [part]))
    for key, below in value.items():
        if key in _USUAL and isinstance(below, dict) and part in below:
            return _named(below, shape, part)
    return missing_part(part, [key for key in value if isinstance(value[key], dict | list)])


def missing_part(part: str, there: Sequence[str]) -> Problem:
    """Return the fault of an object without rows under ``part``; ``there`` are the fields that may have some."""
    names = ", ".join(f"`{shown_name(key)}`" for key in there) or "none"
    found = f"no list of that name; there are: {names}" if part not in there else "something else"
    return data_problem("data.containers.missing_part", part=shown_name(part), found=found)


def _within(value: Mapping[str, Any], shape: Shape) -> Held | Problem | None:
    """Return rows that stand one level further down, as in ``{"train": {"instruction": […], "output": […]}}``."""
    inner = {key: contents(value[key], shape) for key in value if key in _USUAL and isinstance(value[key], dict)}
    found = {key: held for key, held in inner.items() if held is not None}
    if len(found) > 1:
        return several([(key, None) for key in found])
    for key, held in found.items():
        return held if isinstance(held, Problem) else Held(rows=_rows(value[key], held), unread=_others(value, [key]))
    if len(value) == 1 and value[key := next(iter(value))] == [] and key in _USUAL:
        return Held(key)
    return None


def _rows(value: Mapping[str, Any], held: Held) -> Sequence[Any]:
    rows: Sequence[Any] = held.rows if held.key is None else value[held.key]
    return rows


def _columns(value: Mapping[str, Any], deciding: Sequence[str]) -> Held | Problem | None:
    """Return the rows of a dictionary of columns; None if it is a row, because a deciding field is no column."""
    if all(_is_list_column(key, value[key]) for key in deciding):
        columns = {key: column for key, column in value.items() if isinstance(column, list)}
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1:
            return _unequal(lengths)
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        return Held(rows=rows, unread=_others(value, columns))
    if all(isinstance(value[key], dict) and value[key] and _by_index(value[key]) for key in deciding):
        tables = {key: column for key, column in value.items() if isinstance(column, dict)}
        index = list(tables[deciding[0]])
        if any(list(column) != index for column in tables.values()):
            return _unequal({key: len(column) for key, column in tables.items()})
        rows = [{key: column[at] for key, column in tables.items()} for at in index]
        return Held(rows=rows, unread=_others(value, tables))
    return None


def _holds_dialogues(value: object) -> bool:
    """Tell whether a list that is named as one of messages has dialogues for elements, with messages of their own."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and any(isinstance(item.get(key), list) for key in _LISTS) for item in value)
    )


def _is_list_column(key: str, value: object) -> bool:
    """Tell whether ``value`` can be a column of ``key``: a list of what a row holds there, and no row's own value."""
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(item, list) for item in value):
        return True
    if key in _LISTS:
        return all(isinstance(item, str) and item.lstrip().startswith("[") for item in value)
    return not any(isinstance(item, dict | list) for item in value)


def _by_index(column: Mapping[str, Any]) -> bool:
    """Tell whether the keys of ``column`` are numbers, as pandas writes an index."""
    return all(key.isascii() and key.isdigit() for key in column)


def _unequal(lengths: Mapping[str, int]) -> Problem:
    found = ", ".join(f"`{shown_name(key)}` {n:,}" for key, n in lengths.items())
    return data_problem("data.containers.unequal_columns", found=found)


def _cells(value: Mapping[str, Any]) -> Held | Problem | None:
    """Return the rows of ``{"columns": [names], "data": [[cells], …]}``."""
    names, data = value.get("columns"), value.get("data")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return None
    if not (isinstance(data, list) and data and all(isinstance(cells, list) for cells in data)):
        return None
    for row, cells in enumerate(data, 1):
        if len(cells) != len(names):
            return data_problem(
                "data.containers.wrong_number_cells", row=row, names_count=len(names), cells_count=len(cells)
            )
    rows = [dict(zip(names, cells, strict=True)) for cells in data]
    return Held(rows=rows, unread=_others(value, ["columns", "data", "index"]))


def _others(value: Mapping[str, Any], read: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(key for key in value if key not in read)
