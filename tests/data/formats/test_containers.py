"""Objects that contain rows: the rows of each kind, and the faults of ambiguous ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weitune.data.formats.parse import Options
from weitune.data.problems import Problem
from weitune.data.read import json_values, json_window
from weitune.data.read.conversations import Reader, read_conversations
from weitune.errors import DataError

A, B = {"instruction": "q1", "output": "a1"}, {"instruction": "q2", "output": "a2"}
PAIR = {"input": "q1", "output": "a1"}
TURNS = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]


@pytest.fixture(params=["whole", "long"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read objects as short ones, and as ones that exceed the lookahead."""
    if request.param == "long":
        monkeypatch.setattr(json_window, "_WINDOW", 8)
        monkeypatch.setattr(json_values, "LOOKAHEAD", 16)


def questions(folder: Path, text: str, part: str = "") -> list[str]:
    path = folder / "rows.json"
    path.write_text(text, encoding="utf-8")
    reader = Reader([f"{path}{part}"], Options())
    return [conversation.turns[0].content for conversation in read_conversations(reader)]


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(
    "value",
    [
        {"data": [A, B]},
        {"version": 1, "train": [A, B], "about": {"name": "x"}},
        {"anything": [A, B]},
        {"features": [{"name": "instruction"}], "rows": [A, B]},
        {"instruction": ["q1", "q2"], "output": ["a1", "a2"]},
        {"train": {"instruction": ["q1", "q2"], "output": ["a1", "a2"]}},
        {"instruction": {"0": "q1", "1": "q2"}, "output": {"0": "a1", "1": "a2"}},
        {"0": A, "1": B},
        {"columns": ["instruction", "output"], "index": [0, 1], "data": [["q1", "a1"], ["q2", "a2"]]},
        {"schema": {"fields": []}, "data": [{"index": 0, **A}, {"index": 1, **B}]},
        {"messages": [TURNS, [{"role": "user", "content": "q2"}, TURNS[1]]]},
        {"data": {"rows": [A, B]}},
        {"conversations": [{"messages": TURNS}, {"messages": [{"role": "user", "content": "q2"}, TURNS[1]]}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_in_objects(tmp_path: Path, value: Any, indent: int | None) -> None:
    assert questions(tmp_path, json.dumps(value, indent=indent)) == ["q1", "q2"]
    assert questions(tmp_path, json.dumps(value) + "\n" + json.dumps(value)) == ["q1", "q2"] * 2


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(
    "row", [A, {"messages": TURNS, "tags": [{"x": 1}]}, {"tags": [{"x": 1}], **A}, {"conversation": [PAIR]}]
)
def test_a_row_stays_a_row(tmp_path: Path, row: Any) -> None:
    assert questions(tmp_path, json.dumps(row, indent=2)) == ["q1"]
    assert questions(tmp_path, json.dumps(row) + "\n" + json.dumps(row)) == ["q1", "q1"]


def test_a_row_that_contains_rows_is_never_split_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"examples": [B], **A})
    assert questions(tmp_path, text) == ["q1"]
    monkeypatch.setattr(json_window, "_WINDOW", 8)
    monkeypatch.setattr(json_values, "LOOKAHEAD", 16)
    with pytest.raises(DataError, match="`examples`, `instruction`, `output`"):
        questions(tmp_path, text)


@pytest.mark.usefixtures("window")
def test_several_lists_are_a_fault_unless_one_is_named(tmp_path: Path) -> None:
    text = json.dumps({"train": [A, B], "test": [B]})
    with pytest.raises(DataError, match="several lists of rows") as error:
        questions(tmp_path, text)
    assert "`train`" in error.value.message
    assert "FILE:train" in error.value.message
    assert questions(tmp_path, text, ":train") == ["q1", "q2"]
    assert questions(tmp_path, text, ":test") == ["q2"]
    with pytest.raises(DataError, match="`train`, `test`"):
        questions(tmp_path, text, ":trian")


def test_a_part_can_be_columns_and_a_file_of_that_name_comes_first(tmp_path: Path) -> None:
    text = json.dumps({"train": {"instruction": ["q1"], "output": ["a1"]}, "test": {"0": B}})
    assert questions(tmp_path, text, ":test") == ["q2"]
    (tmp_path / "rows.json:test.json").write_text(json.dumps([A]), encoding="utf-8")
    assert questions(tmp_path, text, ":test.json") == ["q1"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"instruction": ["q1", "q2"], "output": ["a1"]}, "unequal columns"),
        ({"instruction": {"0": "q1"}, "output": {"1": "a1"}}, "unequal columns"),
        ({"columns": ["instruction", "output"], "data": [["q1", "a1"], ["q2"]]}, "wrong number of cells"),
        ({"data": []}, "no rows"),
        ({"dialog": [{"who": "x"}]}, "unknown format"),
    ],
)
def test_objects_that_cannot_be_read(tmp_path: Path, value: Any, kind: str) -> None:
    with pytest.raises(DataError) as error:
        questions(tmp_path, json.dumps(value))
    assert [problem.kind for problem in error.value.problems if isinstance(problem, Problem)] == [kind]


def test_only_json_files_have_parts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing part"):
        questions(tmp_path, json.dumps([A]), ":train")
    (tmp_path / "rows.csv").write_text("instruction,output\nq,a\n", encoding="utf-8")
    with pytest.raises(DataError, match="which has no parts"):
        list(read_conversations(Reader([f"{tmp_path / 'rows.csv'}:train"], Options())))


def test_fields_beside_the_rows_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": [A]}), encoding="utf-8")
    reader = Reader([str(path)], Options())
    assert len(list(reader.conversations())) == 1
    assert dict(reader.reports[0].notes.unused) == {"version": 1}


def test_a_long_object_of_rows_is_never_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(json_values, "LOOKAHEAD", 1 << 18)
    path = tmp_path / "rows.json"
    row = json.dumps({"instruction": "x" * 500, "output": "y" * 500})
    path.write_text('{"version": 1, "data": [' + ", ".join([row] * 40_000) + '], "more": true}', encoding="utf-8")
    reader = Reader([str(path)], Options())
    tracemalloc.start()
    count = sum(1 for _ in reader.conversations())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, len(reader.problems)) == (40_000, 0)
    assert dict(reader.reports[0].notes.unused) == {"version": 1, "more": 1}
    assert peak < path.stat().st_size / 8
