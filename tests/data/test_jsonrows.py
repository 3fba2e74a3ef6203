"""The streaming JSON reader against the whole-file one, with a window so small that everything is cut by it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.data import jsonwindow
from weitune.data.jsonrows import json_rows
from weitune.data.problems import Problem
from weitune.data.rows import RawRow

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\n\n \n"])
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


@pytest.fixture(params=[1, 7, 1 << 18])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonwindow, "_WINDOW", request.param)


def read(text: str) -> list[RawRow | Problem]:
    return list(json_rows(io.StringIO(text, newline=""), "f"))


def values(text: str) -> list[Any]:
    rows = read(text)
    assert all(isinstance(row, RawRow) for row in rows)
    return [row.value for row in rows if isinstance(row, RawRow)]


@pytest.mark.usefixtures("window")
@given(rows=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_arrays(rows: list[Any], indent: int | None, ascii_only: bool) -> None:
    assert values(json.dumps(rows, indent=indent, ensure_ascii=ascii_only)) == rows


@pytest.mark.usefixtures("window")
@given(rows=st.lists(OBJECTS, min_size=1, max_size=6), end=LINE_ENDS, last=st.booleans())
def test_lines(rows: list[Any], end: str, last: bool) -> None:
    text = end.join(json.dumps(row) for row in rows) + (end if last else "")
    assert values(text) == rows


@pytest.mark.usefixtures("window")
@given(rows=st.lists(OBJECTS.filter(bool), min_size=1, max_size=4))
def test_pretty_objects_one_after_the_other(rows: list[Any]) -> None:
    assert values("\n".join(json.dumps(row, indent=2) for row in rows)) == rows


@pytest.mark.usefixtures("window")
@given(rows=st.lists(OBJECTS, min_size=1, max_size=4), data=st.data())
def test_a_fault_has_the_place_that_the_standard_library_gives(rows: list[Any], data: st.DataObject) -> None:
    text = json.dumps(rows, indent=1)
    at = data.draw(st.integers(1, len(text) - 1))
    broken = text[:at] + "\x01" + text[at:]
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(broken)
    *good, fault = read(broken)
    assert isinstance(fault, Problem)
    assert [row.value for row in good if isinstance(row, RawRow)] == rows[: len(good)]
    assert fault.row == len(good) + 1
    if "delimiter" not in expected.value.msg:  # between rows, we look for the comma ourselves
        assert (fault.line, fault.column) == (expected.value.lineno, expected.value.colno)


@pytest.mark.usefixtures("window")
def test_a_faulty_line_costs_one_row() -> None:
    rows = read('{"a": 1}\n{"a": }\n\n{"a": 3} x\n{"a": 4}\n')
    places = [
        (row.origin.row, row.origin.line) if isinstance(row, RawRow) else (row.row, row.line, row.column)
        for row in rows
    ]
    assert places == [(1, 1), (2, 2, 7), (3, 4, 10), (4, 5)]


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(
    ("text", "line", "column", "found"),
    [
        ("[{}, {}\n  {}]", 2, 3, "'{}]'"),
        ("[{}, {}", 1, 8, "the end of the file"),
        ("[{}]\n x", 2, 2, "'x'"),
        ("[{},\n]", 2, 1, "near"),
        ('[{"a": "b\n"}]', 1, 10, "control character"),
        ("{'a': 1}", 1, 2, "double quotes"),
        ("hello", 1, 1, "near 'hello'"),
        ('[{"a": ' + "[" * 100_000, 1, None, "nested too deeply"),
        ("[" + "1" * 5000 + "]", 1, 2, "limit"),
    ],
)
def test_faults(text: str, line: int, column: int | None, found: str) -> None:
    fault = read(text)[-1]
    assert isinstance(fault, Problem)
    assert fault.line == line
    assert column is None or fault.column == column
    assert found in fault.found
    assert fault.cure


def test_repeated_keys_are_faults() -> None:
    [row] = read('[{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}]')
    assert isinstance(row, RawRow)
    assert [problem.field for problem in row.problems] == ["c", "a"]


def test_nothing_but_blanks_is_no_row() -> None:
    assert read(" \n\t\n") == []
    assert read("[ ]") == []
