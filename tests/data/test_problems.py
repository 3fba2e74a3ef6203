"""The place and the wrong value of a problem as messages show them, and how problems are collected."""

from __future__ import annotations

from typing import Any

import pytest

from weitune.data.conversation import Origin
from weitune.data.problems import Problem, Problems, data_problem, shown, shown_field


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({}, ""),
        ({"file": "a.json"}, "a.json"),
        ({"file": "a.json", "row": 3}, "a.json row 3"),
        ({"file": "a.json", "line": 2, "column": 7}, "a.json (line 2, column 7)"),
        ({"file": "a.csv", "row": 3, "line": 4, "field": "output"}, "a.csv row 3 (line 4), field `output`"),
    ],
)
def test_the_place_of_a_problem(place: dict[str, Any], said: str) -> None:
    problem = Problem("kind", "rows", "none", "Add some.", **place)
    assert problem.place == said
    assert problem.message == "expected rows; found none"
    assert str(problem) == (f"{said}: {problem.message}" if said else problem.message)


def test_a_problem_takes_the_place_of_its_row() -> None:
    problem = Problem("kind", "rows", "none", "Add some.", line=9)
    assert problem.at(Origin("a.jsonl", 3, 4)).place == "a.jsonl row 3 (line 9)"  # its own line is closer


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "null"),
        ("a\n b", "the string 'a\\n b'"),
        (True, "the boolean True"),
        (2.5, "the number 2.5"),
        ([1], "a list [1]"),
        ({"a": 1}, "an object {'a': 1}"),
        (b"x", "bytes b'x'"),
    ],
)
def test_a_wrong_value_is_shown_with_its_type(value: Any, said: str) -> None:
    assert shown(value) == said
    assert shown_field("a", value) == f"`a` with {said}"


def test_a_long_value_is_cut() -> None:
    assert shown("x" * 1000).endswith("xxx…")


def test_problems_are_grouped_by_kind_and_fix() -> None:
    problems = Problems()
    for row in range(1, 6):
        problems.add([data_problem("data.fields.null_field", file="a.json", row=row, field="output")])
    problems.add([data_problem("data.sources.empty_file", file="b.json")], rows=0)
    assert (problems.rows, len(problems)) == (5, 6)
    lines = problems.lines()
    assert lines[0] == "null field: 5"
    assert lines[4] == "  … and 2 more"
    assert lines[5].startswith("  fix: ")
    assert lines[6] == "empty file"
    assert [(group["kind"], group["count"]) for group in problems.to_json()] == [("null field", 5), ("empty file", 1)]
    assert str(problems.error()).startswith("the data have 6 problems:\n  null field: 5\n")
