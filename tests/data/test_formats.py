"""What each format's rows become, how formats are recognised, and what is said about bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.conversation import Conversation, Origin, ToolCall, Turn
from weitune.data.convert import to_messages
from weitune.data.formats import Options, RowReader
from weitune.data.messages import split_reasoning
from weitune.data.problems import FaultyRow, Problem
from weitune.data.read import Reader
from weitune.errors import RecipeError

HERE = Origin("rows.json", 4)


def read(row: Any, **options: Any) -> Conversation:
    return RowReader(Options(**options)).read(row, HERE)


def faults(row: Any, **options: Any) -> list[Problem]:
    with pytest.raises(FaultyRow) as error:
        read(row, **options)
    return list(error.value.problems)


ASKED, ANSWERED = Turn("user", "q"), Turn("assistant", "a")


def user(content: Any = "q", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def assistant(content: Any = "a", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def messages(*said: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(said), **fields}


def speeches(**said: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in said.items()]}


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "q", "output": "a"}, (ASKED, ANSWERED)),
        ({"instruction": "q", "input": "i", "output": "a"}, (Turn("user", "q\ni"), ANSWERED)),
        ({"instruction": "", "input": "i", "output": "a"}, (Turn("user", "i"), ANSWERED)),
        ({"instruction": "q", "input": "", "output": "a", "system": "s"}, (Turn("system", "s"), ASKED, ANSWERED)),
        ({"instruction": "q", "output": "a", "system": "", "history": []}, (ASKED, ANSWERED)),
        (
            {"instruction": "q", "output": "a", "history": [["x", "y"], ["z", ""]]},
            (Turn("user", "x"), Turn("assistant", "y"), Turn("user", "z"), Turn("assistant", ""), ASKED, ANSWERED),
        ),
        ({"instruction": "q", "output": "<think>r</think>a"}, (ASKED, Turn("assistant", "a", reasoning="r"))),
        ({"instruction": "q", "output": "see <think>r</think>a"}, (ASKED, Turn("assistant", "see <think>r</think>a"))),
        ({"prompt": "q", "completion": "a"}, (ASKED, ANSWERED)),
        ({"prompt": [user()], "completion": [assistant()]}, (ASKED, ANSWERED)),
        (speeches(human="q", gpt="a"), (ASKED, ANSWERED)),
        ({**speeches(human="q", gpt="a"), "system": "s"}, (Turn("system", "s"), ASKED, ANSWERED)),
        ({"conversations": [user(), assistant()]}, (ASKED, ANSWERED)),
        (messages(user(), assistant(), system="s"), (Turn("system", "s"), ASKED, ANSWERED)),
        (messages({"role": "developer", "content": "s"}, assistant()), (Turn("system", "s"), ANSWERED)),
        (messages(user([{"type": "text", "text": "q"}]), assistant()), (ASKED, ANSWERED)),
        (messages(user(), assistant([{"type": "text", "value": "a"}, "b"])), (ASKED, Turn("assistant", "ab"))),
        (messages(user(), assistant(loss_weight=0.5)), (ASKED, Turn("assistant", "a", 0.5))),
        (
            messages(user(), assistant(reasoning_content="r", weight=0)),
            (ASKED, Turn("assistant", "a", 0.0, "r")),
        ),
        (
            messages(user(), assistant("<think>\nr\n</think>\n\na")),
            (ASKED, Turn("assistant", "a", reasoning="r")),
        ),
    ],
)
def test_rows_become_turns(row: dict[str, Any], turns: tuple[Turn, ...]) -> None:
    assert read(row) == Conversation(turns, (), HERE)


def test_alpaca_is_joined_without_a_newline_for_the_tutorial() -> None:
    assert read({"instruction": "q", "input": "i", "output": "a"}, joiner="").turns[0].content == "qi"


def test_tools_and_calls_in_both_spellings() -> None:
    schema = {"name": "tides", "parameters": {}}
    call = {"name": "tides", "arguments": {"port": "Brest"}}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "12:00"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([schema]),
    }
    openai = {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {**call, "arguments": json.dumps(call["arguments"])}}
                ],
            },
            {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"type": "function", "function": schema}],
    }
    tools = ({"type": "function", "function": schema},)
    made = ToolCall("tides", {"port": "Brest"})
    turns = (ASKED, Turn("assistant", "", tool_calls=(made,)), Turn("tool", "12:00"), ANSWERED)
    assert read(sharegpt) == Conversation(turns, tools, HERE)
    named = ToolCall("tides", {"port": "Brest"}, "c1")
    turns = (ASKED, Turn("assistant", "", tool_calls=(named,)), Turn("tool", "12:00", tool_call_id="c1"), ANSWERED)
    assert read(openai) == Conversation(turns, tools, HERE)


def test_columns_of_any_name() -> None:
    columns = {"user": "问题", "assistant": "回答", "system": "角色"}
    row = {"问题": "q", "回答": "a", "角色": "s", "编号": 3}
    assert read(row, columns=columns).turns == (Turn("system", "s"), ASKED, ANSWERED)


@pytest.mark.parametrize("columns", [{"user": "x"}, {"user": "x", "assistant": "y", "bot": "z"}])
def test_columns_that_cannot_be(columns: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="columns"):
        Options(columns=columns)


def test_a_format_that_does_not_exist() -> None:
    with pytest.raises(RecipeError, match="no data format 'alpacca'"):
        Options(format="alpacca")


@pytest.mark.parametrize(
    ("row", "kind", "field"),
    [
        (["q", "a"], "not an object", ""),
        ({"text": "q"}, "unknown format", ""),
        ({}, "unknown format", ""),
        ({"instruction": "q"}, "missing field", "output"),
        ({"output": "a"}, "missing field", "instruction"),
        ({"instruction": "q", "output": None}, "null field", "output"),
        ({"instruction": "q", "input": None, "output": "a"}, "null field", "input"),
        ({"instruction": "q", "output": 3}, "wrong type", "output"),
        ({"instruction": ["q"], "output": "a"}, "wrong type", "instruction"),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "wrong type", "history[0]"),
        ({"instruction": "q", "output": "a", "history": "x"}, "wrong type", "history[0]"),
        (messages(), "empty conversation", "messages"),
        ({"messages": None}, "null field", "messages"),
        ({"messages": "hi"}, "wrong type", "messages"),
        (messages("hi"), "wrong type", "messages[0]"),
        (messages({"content": "q"}), "missing field", "messages[0].role"),
        (messages({"role": "bot", "content": "q"}), "unknown role", "messages[0].role"),
        (messages(user(None)), "null field", "messages[0].content"),
        (messages({"role": "user"}), "missing field", "messages[0].content"),
        (messages(user([{"type": "image_url"}])), "not text", "messages[0].content[0].type"),
        (messages(user([3])), "wrong type", "messages[0].content[0]"),
        (messages(user(weight=-1)), "wrong weight", "messages[0].weight"),
        (messages(user(weight="no")), "wrong weight", "messages[0].weight"),
        (messages(user(loss_weight=float("nan"))), "wrong weight", "messages[0].loss_weight"),
        (messages(user()), "no answer", ""),
        (messages(assistant(tool_calls={})), "wrong type", "messages[0].tool_calls"),
        (messages(assistant(tool_calls=[3])), "wrong type", "messages[0].tool_calls[0]"),
        (
            messages(assistant(tool_calls=[{"name": "f", "arguments": "{"}])),
            "not valid JSON",
            "messages[0].tool_calls[0].arguments",
        ),
        (
            messages(assistant(tool_calls=[{"name": "f", "arguments": [1]}])),
            "wrong type",
            "messages[0].tool_calls[0].arguments",
        ),
        (messages(assistant(), tools="{"), "not valid JSON", "tools"),
        (messages(assistant(), tools={}), "wrong type", "tools"),
        (messages(assistant(), tools=[{}]), "wrong type", "tools[0]"),
        (messages(assistant(), tools=[{"name": "\ud800"}]), "undecodable text", "tools"),
        (speeches(human=3), "wrong type", "conversations[0].value"),
        (speeches(narrator="x"), "unknown role", "conversations[0].from"),
        (speeches(function_call="tides()"), "not valid JSON", "conversations[0].value"),
        ({"prompt": "q"}, "missing field", "completion"),
        ({"prompt": None, "completion": "a"}, "null field", "prompt"),
    ],
)
def test_bad_rows_name_field_and_cure(row: Any, kind: str, field: str) -> None:
    found = [(problem.kind, problem.field) for problem in faults(row)]
    assert (kind, field) in found
    for problem in faults(row):
        assert problem.cure
        assert problem.place.startswith("rows.json row 4")


def test_every_fault_of_a_row_is_named() -> None:
    row = {"messages": [{"role": "bot", "content": 1}, {"role": "user", "content": None}]}
    assert [p.field for p in faults(row)] == ["messages[0].role", "messages[0].content", "messages[1].content"]


def test_fields_that_nothing_reads_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    messages = [{"role": "user", "content": "q", "mood": "x"}, {"role": "assistant", "content": "a", "mood": "y"}]
    path.write_text(json.dumps([{"messages": messages, "id": 1}, {"messages": messages}]), encoding="utf-8")
    reader = Reader([str(path)], Options())
    assert len(list(reader.conversations())) == 2
    assert reader.reports[0].unused == {"messages[].mood": 4, "id": 1}


def test_the_first_row_that_is_recognised_decides(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[Any] = [{}, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    reader = Reader([str(path)], Options())
    assert len(list(reader.conversations())) == 1
    assert reader.reports[0].format == "prompt-completion"
    assert {problem.row for problem in reader.problems} == {1, 3}


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
WEIGHT = st.sampled_from([1.0, 0.0, 0.25])
CALLS = st.lists(
    st.builds(ToolCall, TEXT, st.dictionaries(TEXT, st.integers() | TEXT, max_size=2), st.none() | TEXT), max_size=2
).map(tuple)


@st.composite
def any_conversation(draw: st.DrawFn) -> Conversation:
    turns = [Turn("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        content = draw(TEXT.filter(lambda text: split_reasoning(text)[0] is None))
        turns.append(Turn("user", draw(TEXT), draw(WEIGHT), name=draw(st.none() | TEXT)))
        turns.append(Turn("assistant", content, draw(WEIGHT), draw(st.none() | TEXT.filter(bool)), draw(CALLS)))
        turns.append(Turn("tool", draw(TEXT), tool_call_id=draw(st.none() | TEXT)))
    tools = [{"type": "function", "function": {"name": draw(TEXT), "parameters": {}}}] if draw(st.booleans()) else []
    return Conversation(tuple(turns), tuple(tools), HERE)


@given(conversation=any_conversation())
def test_converted_rows_read_back_equal(conversation: Conversation) -> None:
    row = json.loads(json.dumps(to_messages(conversation), ensure_ascii=False))
    assert read(row) == conversation
