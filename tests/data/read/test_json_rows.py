"""The streaming JSON reader against one that reads all at once, with a window so small that it cuts every value."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from weitune.data.formats.containers import RowCriteria, contained_rows
from weitune.data.problems import Problem
from weitune.data.read import json_values, json_window
from weitune.data.read.json_rows import json_rows
from weitune.data.read.source import RawRow

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\n\n \n"])
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4).filter(
    lambda value: contained_rows(value, RowCriteria()) is None  # {"data": []}, say, contains rows: none
)


@pytest.fixture(params=[1, 7, 1 << 18])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_window, "_WINDOW", request.param)


def read(text: str) -> list[RawRow | Problem]:
    return list(json_rows(io.StringIO(text, newline=""), "f"))


def values(text: str) -> list[Any]:
    rows = read(text)
    assert all(isinstance(row, RawRow) for row in rows)
    return [row.value for row in rows if isinstance(row, RawRow)]


@pytest.mark.usefixtures("window")
@given(rows=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
@example(rows=[None, [], 10.0], indent=None, ascii_only=False)  # of which the second window ends with `10.`
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
    assert fault.fix


def test_repeated_keys_are_faults() -> None:
    [row] = read('[{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}]')
    assert isinstance(row, RawRow)
    assert [problem.field for problem in row.problems] == ["c", "a"]


def test_blank_files_have_no_rows() -> None:
    assert read(" \n\t\n") == []
    assert read("[ ]") == []


Found = list[tuple[str, Any]]
DECODER = json.JSONDecoder()


def after(text: str, pattern: str, at: int) -> int:
    match = re.compile(pattern).match(text, at)
    return match.end() if match else at


def next_line(text: str, at: int) -> int:
    return (text.find("\n", at) + 1) or len(text)


def explained(text: str) -> Found:
    """Read all of a text value by value: the specification of the top level of a file."""
    found: Found = []
    at, lines = 0, False
    while (at := after(text, r"[\s\ufeff]*", at)) < len(text):
        if text[at] == "[":
            at, whole = explained_array(text, at + 1, found)
            if not whole and not lines:
                return found
            if not whole and text[at - 1] != "\n":
                at = next_line(text, at)
            continue
        try:
            value, end = DECODER.raw_decode(text, at)
        except json.JSONDecodeError:
            end = text.find("\n", at)
            following = after(text, r"[\s\ufeff]*", end) if end >= 0 else len(text)
            begins = text[following : following + 1] if text[following - 1 : following] in "\n\ufeff" else " "
            found.append(("fault", None))
            if not lines and following < len(text) and begins not in "{[":
                return found
            at = end if end >= 0 else len(text)
            continue
        rest = after(text, r"(?:[^\S\n]|\ufeff)*", end)
        if text[rest : rest + 1] in {"", "\n", "{", "["}:
            found.append(("row", value))
            lines = lines or (text[rest : rest + 1] in {"", "\n"} and "\n" not in text[at:end])
            at = rest
        else:
            found.append(("fault", None))
            at = next_line(text, rest)
    return found


def explained_array(text: str, at: int, found: Found) -> tuple[int, bool]:
    """Return the end of an array, or the position of its fault, and whether it is the end."""
    begun = False
    while True:
        at = after(text, r"\s*", at)
        if text[at : at + 1] == "]":
            return at + 1, True
        if begun and text[at : at + 1] != ",":
            found.append(("fault", None))
            return at, False
        try:
            value, at = DECODER.raw_decode(text, after(text, r"\s*", at + begun))
        except json.JSONDecodeError as error:
            found.append(("fault", None))
            return error.pos, False
        found.append(("row", value))
        begun = True


ROW = st.builds(lambda n: {"instruction": f"q{n}", "output": "a}, ]\n[{"}, st.integers(0, 9))
PIECE = st.one_of(
    st.lists(ROW, max_size=4).map(json.dumps),
    st.lists(ROW, max_size=3).map(lambda rows: json.dumps(rows, indent=1)),
    ROW.map(json.dumps),
    ROW.map(lambda row: json.dumps(row, indent=1)),
    st.lists(ROW, min_size=1, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)) + "\n"),
    st.sampled_from(["]", "}", ",", '{"a": ', "[", "x", "\ufeff", '"', "[{},]", "[1 2]", '{"a": 1, "b"}', "\x00", "5"]),
)


@pytest.mark.usefixtures("window")
@given(pieces=st.lists(PIECE, max_size=6), joint=st.sampled_from(["", "\n", "\r\n", " ", "\n\n"]))
def test_rows_and_faults_explain_the_whole_file(pieces: list[str], joint: str) -> None:
    text = joint.join(pieces).replace("\r\n", "\n")
    read_as = [("row", row.value) if isinstance(row, RawRow) else ("fault", None) for row in read(text)]
    assert read_as == explained(text)


@given(pieces=st.lists(PIECE, max_size=6), joint=st.sampled_from(["", "\n", " "]))
def test_the_fast_paths_agree_with_the_slow_ones(pieces: list[str], joint: str) -> None:
    text = joint.join(pieces)
    fast = read(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "whole_values", lambda *_: [])
        patch.setattr(json_values, "whole_lines", lambda *_: [])
        assert read(text) == fast
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_window, "_objects_at_once", lambda *_: [])
        assert read(text) == fast


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(("first", "second"), [(91, 372), (999, 1000), (1, 1)])
def test_joined_arrays_lose_no_row(first: int, second: int) -> None:
    rows = [{"instruction": f"q{i}", "output": "a" * 40} for i in range(min(first + second, 300))]
    cut = first * len(rows) // (first + second)
    assert values(json.dumps(rows[:cut]) + "\n" + json.dumps(rows[cut:])) == rows


@pytest.mark.usefixtures("window")
def test_joined_lines_without_a_line_break_between_them() -> None:
    assert values('{"a": 1}\n{"a": 2}{"a": 3}\n\ufeff{"a": 4}\n[{"a": 5},\n{"a": 6}]\n{"a": 7}') == [
        {"a": n} for n in range(1, 8)
    ]


@pytest.mark.usefixtures("window")
def test_an_array_that_ends_too_early_is_a_fault_with_its_place() -> None:
    good, *faults = read('[{"a": 1}],\n{"a": 2},\n{"a": 3}]\n')
    assert isinstance(good, RawRow)
    places = [(fault.row, fault.line, fault.column) for fault in faults if isinstance(fault, Problem)]
    assert places == [(2, 1, 11), (3, 2, 9), (4, 3, 9)]


@pytest.mark.usefixtures("window")
def test_rows_nested_too_deeply_are_faults_and_cost_one_line() -> None:
    deep = '{"x": ' + '{"a": ' * 1200 + "1" + "}" * 1200 + "}"
    fault, row = read(f'{deep}\n{{"a": 1}}\n')
    assert isinstance(fault, Problem)
    assert (fault.row, fault.line, fault.found) == (1, 1, "an object nested too deeply")
    assert isinstance(row, RawRow)
    assert values('{"x": ' + "[" * 199 + "]" * 199 + "}")
    assert isinstance(read('{"x": ' + "[" * 201 + "]" * 201 + "}")[0], Problem)
