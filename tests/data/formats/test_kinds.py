"""The kind of a row, and files whose rows are not of the kind that is wanted, or of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.read.reading_rows import HERE, assistant, messages, user
from weitune.data.formats.kinds import ANY_KIND, CONVERSATIONS, PAIRS_ONLY, PREFERENCES, Kind, kind_of, verdict
from weitune.data.formats.parse import Options, RowReader
from weitune.data.problems import FaultyRow, Problem
from weitune.data.read.conversations import Reader

ROWS: dict[Kind, dict[str, Any]] = {
    "conversations": {"prompt": "q", "completion": "a"},
    "pairs": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "judged": {"prompt": "q", "completion": "a", "label": True},
}


def read_file(folder: Path, rows: list[dict[str, Any]], kinds: frozenset[Kind], name: str = "rows.jsonl") -> Reader:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reader = Reader([str(path)], Options(kinds=kinds))
    assert len(list(reader.valid_rows())) == reader.rows - reader.problems.rows
    return reader


@pytest.mark.parametrize("kind", ROWS)
def test_kinds(kind: Kind) -> None:
    assert kind_of(ROWS[kind], frozenset(), None) == kind
    assert kind_of({**ROWS["conversations"], "chosen": "", "label": None}, frozenset(), None) == "conversations"
    assert kind_of(ROWS["pairs"], frozenset({"prompt", "chosen"}), None) == "conversations"


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "1.0", "TRUE "])
def test_verdicts(value: Any) -> None:
    assert verdict(value) is True
    assert verdict(0 if not isinstance(value, str) else "false") is False
    assert [verdict(other) for other in ("good", 2, -1, None, [1], "")] == [None] * 6


@pytest.mark.parametrize("of_file", ROWS)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("wanted", [CONVERSATIONS, PAIRS_ONLY, PREFERENCES, ANY_KIND])
def test_a_file_of_two_kinds(of_file: Kind, kind: Kind, wanted: frozenset[Kind], tmp_path: Path) -> None:
    if kind == of_file or of_file not in wanted:
        return
    reader = read_file(tmp_path, [ROWS[of_file], ROWS[kind], ROWS[of_file], ROWS[kind]], wanted)
    problems = [problem for problem in reader.problems if isinstance(problem, Problem)]
    assert {problem.kind for problem in problems} == {"mixed kinds"}
    assert problems[0].row == 2
    assert "as in row 1" in problems[0].expected
    assert (1 in [problem.row for problem in problems]) == (kind in wanted)
    assert reader.reports[0].holds == of_file
    assert reader.reports[0].to_json().get("holds", "conversations") == of_file


@pytest.mark.parametrize(
    ("kind", "wanted", "fix"),
    [
        ("pairs", CONVERSATIONS, "--preference.method dpo"),
        ("judged", CONVERSATIONS, "--preference.method kto"),
        ("judged", PAIRS_ONLY, "--preference.method kto"),
        ("conversations", PAIRS_ONLY, "leave `preference.method` out"),
        ("conversations", PREFERENCES, "leave `preference.method` out"),
    ],
)
def test_rows_of_another_kind_than_is_wanted(kind: Kind, wanted: frozenset[Kind], fix: str, tmp_path: Path) -> None:
    reader = read_file(tmp_path, [ROWS[kind]] * 2, wanted)
    assert reader.problems.rows == 2
    assert {problem.row for problem in reader.problems} == {1, 2}
    assert all(fix in problem.fix for problem in reader.problems)
    assert reader.reports[0].holds is None


def test_two_outputs_are_a_pair() -> None:
    row = {"instruction": "q", "output": ["a", "b"]}
    with pytest.raises(FaultyRow) as error:
        RowReader(Options()).read(row, HERE)
    (problem,) = error.value.problems
    assert (problem.kind, problem.field) == ("preference row", "output")
    assert "--preference.method dpo" in problem.fix


def test_a_row_without_any_answer_in_a_file_of_pairs_lacks_both() -> None:
    reader = RowReader(Options(kinds=PAIRS_ONLY))
    reader.read(ROWS["pairs"], HERE)
    for row in ({"prompt": "q"}, {"prompt": "q", "chosen": "", "x": 1}):
        with pytest.raises(FaultyRow) as error:
            reader.read(row, HERE)
        assert "rejected" in [problem.field for problem in error.value.problems]


def test_the_first_file_decides_if_any_kind_is_read(tmp_path: Path) -> None:
    for name, kind in (("a.jsonl", "pairs"), ("b.jsonl", "judged"), ("c.jsonl", "conversations"), ("d.jsonl", "pairs")):
        read_file(tmp_path, [ROWS[kind]], ANY_KIND, name)  # type: ignore[index]
    reader = Reader([str(tmp_path)], Options(kinds=ANY_KIND))
    assert len(list(reader.preferences())) == 2
    assert [Path(problem.file).name for problem in reader.problems] == ["b.jsonl", "c.jsonl"]
    reader = Reader([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], Options(kinds=PREFERENCES))
    assert [report.holds for report in reader.reports] == [None, None]
    assert len(list(reader.preferences())) == 2
    assert [report.holds for report in reader.reports] == ["pairs", "judged"]
    reader = Reader([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")], Options(kinds=ANY_KIND))
    assert len(list(reader.preferences())) == 1
    assert "--preference.method kto" in next(iter(reader.problems)).fix


def test_a_dialogue_without_its_rejected_answer_is_of_another_kind() -> None:
    reader = RowReader(Options(kinds=PAIRS_ONLY))
    reader.read(messages(user(), assistant(), rejected_response="b"), HERE)
    with pytest.raises(FaultyRow, match="as in row 4; found an answer to learn"):
        reader.read(messages(user(), assistant()), HERE)
