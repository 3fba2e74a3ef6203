"""What `data convert` writes reads back equal: no reasoning, call, weight or name is lost on the way."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.reading_rows import HERE, assistant, messages, read, user
from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.convert import to_messages, write_rows
from weitune.data.formats import Options
from weitune.data.problems import FaultyRow
from weitune.data.read import Reader
from weitune.data.reasoning import opens_with_reasoning, split_reasoning

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
TAGGED = st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " "]), max_size=5).map("".join)
WEIGHT = st.sampled_from([1.0, 0.0, 0.25])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.builds(ToolCall, TEXT, st.dictionaries(TEXT, VALUES, max_size=2), st.none() | TEXT), max_size=2
).map(tuple)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"name": TEXT},
        optional={
            "description": TEXT,
            "parameters": st.dictionaries(TEXT, VALUES, max_size=2),
            "strict": st.booleans(),
        },
    ).map(lambda schema: {"type": "function", "function": schema}),
    max_size=2,
).map(tuple)


@st.composite
def answers(draw: st.DrawFn) -> Turn:
    """Return an assistant's turn that reading can make: reasoning in tags is never left at the start of its text."""
    reasoning = draw(st.none() | st.just("") | TEXT | TAGGED)
    is_text = (lambda text: split_reasoning(text)[0] is None) if reasoning is None else _does_not_open
    content = draw((TEXT | TAGGED).filter(is_text))
    return Turn("assistant", content, draw(WEIGHT), reasoning, draw(CALLS), draw(st.none() | TEXT))


def _does_not_open(text: str) -> bool:
    return not opens_with_reasoning(text)


@st.composite
def any_conversation(draw: st.DrawFn) -> Conversation:
    turns = [Turn("system", draw(TEXT), draw(WEIGHT), name=draw(st.none() | TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", draw(TEXT | TAGGED), draw(WEIGHT), name=draw(st.none() | TEXT)))
        turns.append(draw(answers()))
        name, answered = draw(st.none() | TEXT), draw(st.none() | TEXT)
        turns.append(Turn("tool", draw(TEXT | TAGGED), draw(WEIGHT), name=name, tool_call_id=answered))
    return Conversation(tuple(turns), draw(TOOLS), HERE)


@given(conversation=any_conversation())
def test_converted_rows_read_back_equal(conversation: Conversation) -> None:
    row = json.loads(json.dumps(to_messages(conversation), ensure_ascii=False))
    assert read(row) == conversation


@given(text=TEXT | TAGGED, given=st.none() | st.just("") | TAGGED)
def test_what_was_read_once_reads_the_same_ever_after(text: str, given: str | None) -> None:
    row = messages(user(), assistant(text, reasoning_content=given))
    try:
        conversation = read(row)
    except FaultyRow:
        return  # two reasonings
    assert read(to_messages(conversation)) == conversation


def test_empty_reasoning_survives() -> None:
    conversation = read(messages(user(), assistant("<think>\n\n</think>\n\na")))
    row = to_messages(conversation)
    assert row["messages"][1] == {"role": "assistant", "content": "a", "reasoning_content": ""}
    assert read(row) == conversation
    assert "reasoning_content" not in to_messages(read(messages(user(), assistant())))["messages"][1]


def test_everything_an_answer_may_have_is_written() -> None:
    call: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "tides", "arguments": '{"a": "é"}'}}
    said = assistant("x", reasoning_content="r", tool_calls=[call], name="Ann", weight=0.5)
    heard = {"role": "tool", "content": "noon", "name": "tides", "tool_call_id": "c1"}
    tools = [{"type": "function", "function": {"name": "tides"}}]
    row = messages(user(weight=0.0), said, heard, assistant(), tools=tools)
    assert to_messages(read(row)) == row


class Terminal(io.StringIO):
    """A stream that cannot write Chinese."""

    encoding = "latin-1"


def test_a_stream_of_another_encoding_gets_escapes() -> None:
    conversation = read(messages(user("你"), assistant("é")))
    terminal, pipe = Terminal(), io.StringIO()
    assert write_rows([conversation], terminal) == write_rows([conversation], pipe) == 1
    assert terminal.getvalue().isascii()
    assert "你" in pipe.getvalue()
    assert json.loads(terminal.getvalue()) == json.loads(pipe.getvalue()) == to_messages(conversation)


@pytest.mark.parametrize("name", ["alpaca_en_demo.json", "glaive_toolcall_zh_demo.json", "v1_sft_demo.jsonl"])
def test_real_files_read_back_equal(name: str, shared_data: Path) -> None:
    for _, conversation in Reader([str(shared_data / name)], Options()).conversations():
        row = json.loads(json.dumps(to_messages(conversation), ensure_ascii=False))
        again = read(row)
        assert (again.turns, again.tools) == (conversation.turns, conversation.tools)
