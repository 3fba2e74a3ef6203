"""Pairs and judged answers in every kind of file, and in objects that contain rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.files import write
from tests.data.read.reading_rows import assistant, user
from weitune.data.formats.kinds import PREFERENCES
from weitune.data.formats.parse import Options
from weitune.data.preference.values import Judged, Pair
from weitune.data.read import json_values, json_window
from weitune.data.read.conversations import Reader

TEXTS = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(2)]
DIALOGUES = [{"chosen": [user(f"q{i}"), assistant(f"a{i}")], "rejected": [user(f"q{i}"), assistant(f"b{i}")]}
             for i in range(2)]  # fmt: skip
OPENAI = [
    {"input": {"messages": [user(f"q{i}")], "tools": None}, "preferred_output": [assistant(f"a{i}")],
     "non_preferred_output": [assistant(f"b{i}")]}
    for i in range(2)
]  # fmt: skip
TWO_OUTPUTS = [{"instruction": f"q{i}", "output": [f"a{i}", f"b{i}"]} for i in range(2)]
JUDGED = [{"prompt": f"q{i}", "completion": f"a{i}", "label": bool(i)} for i in range(2)]


def said(path: Path | str) -> list[tuple[Any, ...]]:
    """Return question and answers of every row, and whether a judged one was liked."""
    reader = Reader([str(path)], Options(kinds=PREFERENCES))
    found: list[tuple[Any, ...]] = []
    for _, row in reader.preferences():
        asked = row.prompt.turns[0].content
        if isinstance(row, Judged):
            found.append((asked, row.answer[0].content, row.liked))
        else:
            assert isinstance(row, Pair)
            found.append((asked, row.chosen[0].content, row.rejected[0].content))
    assert not reader.problems, "\n".join(reader.problems.lines())
    return found


PAIRS_SAID = [("q0", "a0", "b0"), ("q1", "a1", "b1")]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_texts_and_verdicts(kind: str, tmp_path: Path) -> None:
    assert said(write(tmp_path, kind, TEXTS)) == PAIRS_SAID
    assert said(write(tmp_path, kind, JUDGED)) == [("q0", "a0", False), ("q1", "a1", True)]


@pytest.mark.parametrize("rows", [DIALOGUES, OPENAI, TWO_OUTPUTS])
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_nested_fields(rows: list[dict[str, Any]], kind: str, tmp_path: Path) -> None:
    assert said(write(tmp_path, kind, rows)) == PAIRS_SAID


@pytest.mark.parametrize("rows", [DIALOGUES, OPENAI])
def test_cells_as_json(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    cells = [{key: json.dumps(value) for key, value in row.items()} for row in rows]
    assert said(write(tmp_path, "csv", cells)) == PAIRS_SAID


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("rows", [TEXTS, DIALOGUES, OPENAI, TWO_OUTPUTS])
def test_rows_in_objects(
    long: bool, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if long:
        monkeypatch.setattr(json_window, "_WINDOW", 8)
        monkeypatch.setattr(json_values, "LOOKAHEAD", 16)
    path = tmp_path / "rows.json"
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    contained = [{"data": rows}, {"version": 1, "train": rows}, {"0": rows[0], "1": rows[1]}]
    for value in [*contained, *([columns] if rows is not OPENAI else [])]:
        path.write_text(json.dumps(value), encoding="utf-8")
        assert said(path) == PAIRS_SAID
    path.write_text(json.dumps(rows[0], indent=1) + "\n" + json.dumps(rows[1]), encoding="utf-8")
    assert said(path) == PAIRS_SAID
