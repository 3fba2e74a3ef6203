"""Rows for preference tuning and about pictures are refused; rows that only look like it are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.read.reading_rows import assistant, fault, faults, messages, read, speeches, unread, user
from weitune.data.formats.parse import Options
from weitune.data.read.conversations import Reader

ALPACA = {"instruction": "q", "output": "a"}
PROMPT = {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize("row", [ALPACA, PROMPT, messages(user(), assistant()), speeches(human="q", gpt="a")])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kto_tag", True),
        ("kto_tag", False),
        ("kto_tag", "false"),
        ("kto_tag", 0),
        ("desirable", False),
        ("is_chosen", 1),
        ("label", True),
        ("label", False),
        ("label", "False"),
        ("label", " true "),
        ("Label", False),
    ],
)
def test_verdicts(row: dict[str, Any], name: str, value: Any) -> None:
    problem = fault({**row, name: value})
    assert (problem.kind, problem.field) == ("preference row", name)
    assert f"`{name}`" in problem.fix


@pytest.mark.parametrize("row", [ALPACA, PROMPT, messages(user(), assistant()), speeches(human="q", gpt="a")])
@pytest.mark.parametrize("value", [0, 1, 1.0, "0", "1", "1.0", " 0"])
def test_verdicts_as_numbers(row: dict[str, Any], value: Any) -> None:
    assert fault({**row, "label": value}).field == "label"


@pytest.mark.parametrize("value", ["positive", "", None, 3, "2", 0.5, [1, 0], "0 stars"])
def test_classes_are_no_verdicts(value: Any) -> None:
    for row in (ALPACA, PROMPT, messages(user(), assistant())):
        assert unread({**row, "label": value}) == {"label": 1}


def test_a_class_column_may_be_the_answer() -> None:
    columns = {"user": "text", "assistant": "label"}
    assert read({"text": "q", "label": "true"}, columns=columns).turns[1].content == "true"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen"),
        ({"prompt": [user()], "chosen": [assistant()], "rejected": [assistant("b")]}, "rejected"),
        ({"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"}, "chosen"),
        ({"instruction": "q", "chosen": "a", "rejected": "b"}, "rejected"),
        ({**speeches(human="q", gpt="a"), "chosen": {"from": "gpt", "value": "b"}}, "chosen"),
        ({**messages(user(), assistant()), "rejected_response": "b"}, "rejected_response"),
        ({**messages(user(), assistant()), "rejected_messages": [user(), assistant("b")]}, "rejected_messages"),
        ({"chosen_messages": [user(), assistant()], "rejected_messages": [user(), assistant("b")]}, "chosen_messages"),
        ({"query": "q", "response": "a", "response_rejected": "b"}, "response_rejected"),
        ({**ALPACA, "chosen_response": "b"}, "chosen_response"),
        ({**ALPACA, "dispreferred": "b"}, "dispreferred"),
        ({**PROMPT, "worse_response": "b"}, "worse_response"),
        (messages(user(), assistant(), negative_messages=[[user()]]), "negative_messages"),
        ({"input": {"messages": [user()]}, "preferred_output": [assistant()], "non_preferred_output": [assistant()]},
         "non_preferred_output"),
        ({**PROMPT, "rejected": False}, "rejected"),
        ({"Prompt": "q", "Chosen": "a", "Rejected": "b"}, "Chosen"),
    ],
)  # fmt: skip
def test_compared_answers(row: dict[str, Any], field: str) -> None:
    found = faults(row)
    assert {problem.kind for problem in found} == {"preference row"}
    assert field in [problem.field for problem in found]
    assert "To learn the better answers" in found[0].fix


def test_empty_columns_of_comparisons_are_unread() -> None:
    row = {**ALPACA, "chosen": "", "rejected": None, "kto_tag": "", "images": [], "score_chosen": 7.5}
    assert unread(row) == {"chosen": 1, "rejected": 1, "kto_tag": 1, "images": 1, "score_chosen": 1}


def test_columns_say_which_answer_is_meant() -> None:
    columns = {"user": "prompt", "assistant": "chosen"}
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "image": "x.png"}
    assert [turn.content for turn in read(row, columns=columns).turns] == ["q", "a"]
    assert unread(row, columns=columns) == {"rejected": 1, "image": 1}


def test_columns_do_not_say_which_rows_are_good() -> None:
    columns = {"user": "问题", "assistant": "回答"}
    row = {"问题": "q", "回答": "a"}
    assert fault({**row, "label": False}, columns=columns).field == "label"
    assert fault({**row, "kto_tag": 1}, columns=columns).field == "kto_tag"
    assert unread({**row, "label": 1}, columns=columns) == {"label": 1}


@pytest.mark.parametrize("name", ["image", "images", "videos", "audios"])
@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"bytes": b"x"}])
def test_rows_about_pictures(name: str, value: Any) -> None:
    problem = fault({**speeches(human="<image>q", gpt="a"), name: value})
    assert (problem.kind, problem.field) == ("not text", name)


@pytest.mark.parametrize("label", ["True", "False", "true", "1"])
def test_verdicts_in_a_table(label: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,completion,label\nq,a,{label}\n", encoding="utf-8")
    reader = Reader([str(path)], Options())
    assert not list(reader.conversations())
    assert [(problem.row, problem.field) for problem in reader.problems] == [(1, "label")]


def test_real_pairs_are_refused(shared_data: Path) -> None:
    path = shared_data / "pairs_en_demo.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    reader = Reader([str(path)], Options())
    assert not list(reader.conversations())
    assert reader.problems.rows == len(rows) == 50
    assert {problem.field for problem in reader.problems} == {"chosen", "rejected"}
