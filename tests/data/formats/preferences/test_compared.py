"""Pairs in every format that tools write, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.files import as_table
from tests.data.formats.preferences.reading_preferences import faults, found, read_pair, unread
from tests.data.read.reading_rows import ANSWERED, ASKED, HERE, assistant, messages, speeches, tool, user
from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.formats.kinds import ANY_KIND, PAIRS_ONLY
from weitune.data.formats.parse import Options, RowReader
from weitune.data.preference.values import Pair
from weitune.data.problems import FaultyRow
from weitune.data.read.conversations import Reader
from weitune.errors import RecipeError

WORSE = Turn("assistant", "b")
GPT, OTHER_GPT = {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}
SYSTEM = Turn("system", "s")
HH, WORSE_HH = "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({**speeches(human="q"), "chosen": GPT, "rejected": OTHER_GPT}, "sharegpt"),
        ({**speeches(human="q"), "chosen": "a", "rejected": "b"}, "sharegpt"),
        ({"conversation": speeches(human="q")["conversations"], "chosen": GPT, "rejected": OTHER_GPT}, "sharegpt"),
        (messages(user(), chosen=assistant(), rejected=assistant("b")), "messages"),
        (messages(user(), chosen=[assistant()], rejected=[assistant("b")]), "messages"),
        (messages(user(), chosen="a", rejected=[assistant("b")]), "messages"),
        (messages(user(), assistant(), rejected_response="b"), "messages"),
        (messages(user(), assistant(), rejected_response=[assistant("b")]), "messages"),
        (messages(user(), assistant(), rejected_messages=[user(), assistant("b")]), "messages"),
        (messages(user(), assistant(), rejected_messages=[assistant("b")]), "messages"),
        (messages(user(), chosen_response="a", rejected_response="b"), "messages"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "prompt-completion"),
        ({"prompt": [user()], "chosen": [assistant()], "rejected": [assistant("b")]}, "prompt-completion"),
        ({"prompt": "q", "chosen": assistant(), "rejected": assistant("b")}, "prompt-completion"),
        ({"prompt": "q", "chosen": [user(), assistant()], "rejected": [user(), assistant("b")]}, "prompt-completion"),
        ({"prompt": "q", "completion": "a", "rejected_response": "b"}, "prompt-completion"),
        ({"query": "q", "response": "a", "rejected_response": "b"}, "prompt-completion"),
        ({"question": "q", "chosen": "a", "rejected": "b"}, "prompt-completion"),
        ({"query": "q", "chosen_response": "a", "rejected_response": "b"}, "prompt-completion"),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"}, "prompt-completion"),
        ({"instruction": "q", "chosen": "a", "rejected": "b"}, "alpaca"),
        ({"instruction": "", "input": "q", "chosen": "a", "rejected": "b"}, "alpaca"),
        ({"instruction": "q", "output": ["a", "b"]}, "alpaca"),
        ({"instruction": "q", "chosen_response": "a", "rejected_response": "b"}, "alpaca"),
        ({"instruction": "q", "output": "a", "rejected": "b"}, "alpaca"),
        ({"chosen": [user(), assistant()], "rejected": [user(), assistant("b")]}, "chosen-rejected"),
        ({"chosen_messages": [user(), assistant()], "rejected_messages": [user(), assistant("b")]}, "chosen-rejected"),
        ({"chosen": HH, "rejected": WORSE_HH}, "chosen-rejected"),
        (
            {
                "input": {"messages": [user()], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [assistant()],
                "non_preferred_output": [assistant("b")],
            },
            "preferred-output",
        ),
    ],
)
def test_formats(row: dict[str, Any], name: str) -> None:
    assert read_pair(row) == Pair(Conversation((ASKED,), (), HERE), (ANSWERED,), (WORSE,))
    assert read_pair(row, format=name) == read_pair(row)
    assert not unread(row)
    reader = RowReader(Options(kinds=PAIRS_ONLY))
    reader.read(row, HERE)
    assert (reader.format, reader.kind) == (name, "pairs")


@pytest.mark.parametrize(
    "row",
    [
        {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"},
        {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
        {"system": "s", "instruction": "q", "output": ["a", "b"]},
        {"system": "s", **speeches(human="q"), "chosen": GPT, "rejected": OTHER_GPT},
        {"system": "s", **messages(user(), assistant()), "rejected_messages": [user(), assistant("b")]},
        {"system": "s", "chosen": [user(), assistant()], "rejected": [user(), assistant("b")]},
        {"system": "s", "chosen": HH, "rejected": WORSE_HH},
        {"prompt": [{"role": "system", "content": "s"}, user()], "chosen": "a", "rejected": "b"},
        {
            "chosen": [{"role": "system", "content": "s"}, user(), assistant()],
            "rejected": [{"role": "system", "content": "s"}, user(), assistant("b")],
        },
    ],
)
def test_system_prompts(row: dict[str, Any]) -> None:
    pair = read_pair(row)
    assert pair.prompt.turns == (SYSTEM, ASKED)
    assert (pair.chosen, pair.rejected) == ((ANSWERED,), (WORSE,))
    assert pair.with_system("t") == pair


def test_history_and_reasoning_and_tools() -> None:
    row = {"instruction": "q", "history": [["x", "y"]], "chosen": "<think>r</think>a", "rejected": "b"}
    pair = read_pair(row)
    assert pair.prompt.turns == (Turn("user", "x"), Turn("assistant", "y"), ASKED)
    assert pair.chosen == (Turn("assistant", "a", reasoning="r"),)
    call = {"name": "tides", "arguments": {"port": "Brest"}}
    called = assistant(None, tool_calls=[call])
    row = messages(user(), chosen=[called, tool(), assistant()], rejected=[assistant("b")], tools=[{"name": "tides"}])
    pair = read_pair(row)
    made = Turn("assistant", "", tool_calls=(ToolCall("tides", {"port": "Brest"}),))
    assert pair.chosen == (made, Turn("tool", "noon"), ANSWERED)
    assert len(pair.prompt.tools) == 1


def test_two_dialogues_part_where_their_answers_begin() -> None:
    called = assistant(None, tool_calls=[{"name": "tides", "arguments": {}}])
    before = [user("x"), assistant("y"), user(), called, tool()]
    pair = read_pair({"chosen": [*before, assistant()], "rejected": [*before, assistant("b")]})
    assert len(pair.prompt.turns) == 5
    assert (pair.chosen, pair.rejected) == ((ANSWERED,), (WORSE,))
    pair = read_pair({"chosen": [*before, assistant()], "rejected": [*before[:-1], tool("one"), assistant("b")]})
    assert [turn.role for turn in pair.prompt.turns] == ["user", "assistant", "user"]
    assert [turn.content for turn in pair.rejected] == ["", "one", "b"]
    pair = read_pair({"chosen": [user(), assistant(), user("x"), assistant()], "rejected": [user(), assistant("b")]})
    assert [turn.content for turn in pair.chosen] == ["a", "x", "a"]
    pair = read_pair({"chosen": [*before, assistant()], "rejected": [*before, assistant()]})
    assert pair.chosen == pair.rejected
    assert len(pair.prompt.turns) == 3


def test_weights_mean_nothing_in_a_prompt_and_are_refused_in_an_answer() -> None:
    before = [user("x"), assistant("y", weight=0), user()]
    pair = read_pair(
        {"chosen": [*before, assistant()], "rejected": [user("x"), assistant("y"), user(), assistant("b")]}
    )
    assert [turn.weight for turn in pair.prompt.turns] == [1, 1, 1]
    row = messages(*before, chosen=assistant(weight=0.5), rejected=assistant("b", train=False))
    assert found(row) == [("weight in an answer", "chosen"), ("weight in an answer", "rejected")]


def test_a_prompt_beside_whole_dialogues() -> None:
    row = {"chosen": [user("x"), assistant("y"), user(), assistant()]}
    row["rejected"] = [*row["chosen"][:-1], assistant("b")]
    for prompt in ("q", " x\n", "", None, [user("x")], row["chosen"][:-1], json.dumps([user("x")])):
        assert not unread({**row, "prompt": prompt})
    assert found({**row, "prompt": "z"}) == [("different prompts", "prompt")]
    assert found({**row, "prompt": [user()]}) == [("different prompts", "prompt")]
    assert unread({"messages": row["chosen"], "prompt_id": 3, **row}) == {"messages": 1, "prompt_id": 1}


def test_cells_of_tables(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "id": "1"},
        {"prompt": "", "chosen": json.dumps([user(), assistant()]), "rejected": json.dumps([user(), assistant("b")])},
        {"prompt": json.dumps([user()]), "chosen": json.dumps(assistant()), "rejected": json.dumps(assistant("b"))},
        {"prompt": "q", "chosen": "a", "rejected": ""},
    ]
    path = tmp_path / "rows.csv"
    path.write_text(as_table([{**rows[0]}, *({"id": "", **row} for row in rows[1:])], ","), encoding="utf-8")
    reader = Reader([str(path)], Options(kinds=PAIRS_ONLY))
    pairs = [row for _, row in reader.preferences() if isinstance(row, Pair)]
    assert not reader.problems
    assert [pair.prompt.turns for pair in pairs] == [(ASKED,)] * 4
    assert [pair.chosen for pair in pairs] == [(ANSWERED,)] * 4
    assert [pair.rejected[0].content for pair in pairs] == ["b", "b", "b", ""]
    assert reader.reports[0].holds == "pairs"


@pytest.mark.parametrize(
    "text", ['{"from": "Brest", "to": "Oran"}', '[{"value": 3}]', '{"content": ', "[]", "{}", "[1]"]
)
def test_answers_in_json_that_are_no_messages_are_texts(text: str) -> None:
    for other in (text, json.dumps(assistant("b"))):
        pair = read_pair({"prompt": "q", "chosen": text, "rejected": other})
        assert (pair.chosen[0].content, pair.rejected[0].content) == (text, other)


@pytest.mark.parametrize(
    ("row", "kind", "field"),
    [
        ({"prompt": "q", "chosen": "a"}, "missing field", "rejected"),
        ({"prompt": "q", "rejected": "a"}, "missing field", "chosen"),
        ({"prompt": "q", "chosen": "a", "rejected ": "b"}, "missing field", "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "null field", "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "wrong type", "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "empty conversation", "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": ["b"]}, "wrong type", "rejected[0]"),
        ({"prompt": "q", "chosen": "a", "rejected": "\ud83d"}, "undecodable text", "rejected"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "wrong type", "prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": user()}, "a dialogue and an answer", "rejected"),
        ({"prompt": "q", "chosen": [user(), assistant()], "rejected": "b"}, "a dialogue and an answer", "chosen"),
        ({"prompt": "q", "chosen": assistant(), "rejected": {"role": "bot", "content": "b"}}, "unknown role",
         "rejected.role"),
        ({"prompt": "q", "chosen": [tool()], "rejected": "b"}, "no answer", "chosen"),
        ({"prompt": "q", "chosen": [assistant(), user()], "rejected": "b"}, "no answer", "chosen"),
        ({"prompt": "q", "chosen": [assistant(), {"role": "system", "content": "s"}, assistant()], "rejected": "b"},
         "system prompt within the dialogue", "chosen[1]"),
        (messages(user(), assistant(), chosen="a", rejected="b"), "prompt with an answer", "messages"),
        (messages(user(), rejected_response="b"), "no answer", "messages"),
        (messages(user(), assistant(), rejected_messages=[user("x"), assistant()]), "different prompts",
         "rejected_messages[0]"),
        ({"chosen": "a", "rejected": "b"}, "no prompt", "chosen"),
        ({"chosen": [assistant()], "rejected": [assistant("b")]}, "no prompt", "prompt"),
        ({"chosen": HH, "rejected": "b"}, "no prompt", "rejected"),
        ({"chosen": "\n\nHuman: q", "rejected": WORSE_HH}, "no answer", "rejected"),
        ({"chosen": [user(), assistant()], "rejected": [user("x"), assistant()]}, "different prompts", "rejected[0]"),
        ({"chosen": [user(), assistant(), user()], "rejected": [user(), assistant()]}, "no answer", "rejected"),
        ({"instruction": "q", "output": ["a", "b"], "input": 3}, "wrong type", "input"),
        ({"input": {}, "preferred_output": [assistant()], "non_preferred_output": [assistant()]}, "missing field",
         "input.messages"),
        ({"input": "q", "preferred_output": [assistant()], "non_preferred_output": [assistant()]}, "not valid JSON",
         "input"),
        ({"preferred_output": [assistant()], "non_preferred_output": [assistant()]}, "missing field", "input"),
        ({"input": [user()], "preferred_output": [assistant()], "non_preferred_output": [assistant()]}, "wrong type",
         "input"),
        ({"Prompt": "q", "Chosen": "a", "Rejected": "b"}, "preference row", "Rejected"),
        ({"prompt": "q", "completion": "a", "worse_response": "b"}, "preference row", "worse_response"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "images": ["a.png"]}, "not text", "images"),
    ],
)  # fmt: skip
def test_faults(row: dict[str, Any], kind: str, field: str) -> None:
    assert (kind, field) in found(row)


def test_every_fault_of_a_row_is_named() -> None:
    row = {"prompt": 3, "chosen": None, "rejected": [user(3)]}
    assert {field for _, field in found(row)} == {"prompt", "chosen", "rejected[0].content"}


def test_a_list_of_outputs_in_a_file_of_pairs() -> None:
    reader = RowReader(Options(kinds=ANY_KIND))
    reader.read({"instruction": "q", "output": ["a", "b"]}, HERE)
    for output in (["a"], ["a", "b", "c"], ["a", 3]):
        with pytest.raises(Exception, match="two texts"):
            reader.read({"instruction": "q", "output": output}, HERE)


def test_unread_fields_are_counted() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 7.5, "label": True, "id": 3}
    assert unread(row) == {"score_chosen": 1, "label": 1, "id": 1}
    assert unread({"instruction": "q", "output": "z", "chosen": "a", "rejected": "b"}) == {"output": 1}
    assert unread({"prompt": "q", "completion": "z", "chosen": "a", "rejected": "b"}) == {"completion": 1}
    row = messages(user(mood="x"), chosen=assistant(mood="y"), rejected="b")
    assert unread(row) == {"messages[].mood": 1, "chosen.mood": 1}


def test_the_real_pairs(shared_data: Path) -> None:
    reader = Reader([str(shared_data / "pairs_en_demo.jsonl")], Options(kinds=PAIRS_ONLY))
    pairs = [row for _, row in reader.preferences()]
    assert (len(pairs), len(reader.problems)) == (50, 0)
    assert all(isinstance(pair, Pair) and pair.chosen != pair.rejected for pair in pairs)
    assert faults({"chosen": "a", "rejected": "b"})


def test_columns_of_any_name() -> None:
    columns = {"user": "问题", "chosen": "好", "rejected": "坏", "system": "角色"}
    row = {"问题": "q", "好": "a", "坏": "b", "角色": "s", "label": True, "编号": 3}
    pair = read_pair(row, columns=columns)
    assert pair == Pair(Conversation((SYSTEM, ASKED), (), HERE), (ANSWERED,), (WORSE,))
    lists = {**row, "好": [user(), assistant()], "坏": [user(), assistant("b")]}
    reader = RowReader(Options(columns=columns, kinds=PAIRS_ONLY))
    assert reader.read(lists, HERE).origin == HERE
    for bad in ({"问题": "q", "好": "a"}, {**row, "坏": None}):
        with pytest.raises(FaultyRow, match="坏"):
            reader.read(bad, HERE)
    with pytest.raises(FaultyRow, match="one of several answers"):
        RowReader(Options(columns=columns)).read(row, HERE)


@pytest.mark.parametrize(
    "columns",
    [{"user": "x", "chosen": "y"}, {"user": "x", "assistant": "y", "rejected": "z"}, {"chosen": "x", "rejected": "y"}],
)
def test_wrong_columns(columns: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="columns"):
        Options(columns=columns)
