"""What `data convert` writes reads back equal: no reasoning, call, weight or name is lost on the way."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.read.reading_rows import HERE, assistant, messages, read, user
from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.formats.kinds import ANY_KIND
from weitune.data.formats.parse import Options, Row, RowReader
from weitune.data.formats.reasoning import opens_with_reasoning, split_reasoning
from weitune.data.preference.values import Judged, Pair
from weitune.data.problems import FaultyRow, Problem
from weitune.data.read.conversations import Reader
from weitune.data.show.convert import to_messages, to_row, write_rows

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NAMES = TEXT.filter(str.strip)
TAGGED = st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " "]), max_size=5).map("".join)
WEIGHT = st.sampled_from([1.0, 0.0, 0.25])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.builds(ToolCall, NAMES, st.dictionaries(TEXT, VALUES, max_size=2), st.none() | TEXT), max_size=2
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


NAMES = st.sampled_from([
    "messages", "conversations", "conversation", "role", "from", "type", "content", "value", "text", "tool_calls",
    "function_call", "function", "name", "arguments", "args", "input", "output", "instruction", "history", "system",
    "tools", "functions", "prompt", "completion", "response", "query", "weight", "train", "reasoning", "thinking", "id",
    "tool_call_id", "call_id", "tool_use_id", "parameters", "human", "assistant",
])  # fmt: skip
WORDS = st.sampled_from([
    "user", "assistant", "system", "tool", "tool_call", "function_call", "function_call_output", "thinking", "text",
    "tool_use", "tool_result", "human", "gpt", "<think>r</think>a", "r</think>a", "", "[]", "{}", "null", "\ud83d",
    '{"name": "f"}', '[{"name": "f", "args": "{}"}]', '[{"role": "assistant", "content": "a"}]', '[["q", "a"]]',
])  # fmt: skip
JUNK = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 0.5, -1, float("nan")]) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
PART_KEYS = ("text", "thinking", "name", "input", "content")
PART = st.fixed_dictionaries({"type": WORDS}, optional=dict.fromkeys(PART_KEYS, JUNK))
MESSAGE = st.fixed_dictionaries(
    {"role": WORDS, "content": WORDS | st.lists(PART | WORDS, max_size=3)},
    optional=dict.fromkeys(("tool_calls", "function_call", "reasoning", "thinking", "train", "weight", "name"), JUNK),
)
SIDES_AND_PROMPTS = st.sampled_from([
    "prompt", "question", "instruction", "input", "output", "completion", "messages", "conversations", "system",
    "tools", "chosen", "rejected", "chosen_response", "rejected_response", "rejected_messages", "preferred_output",
    "non_preferred_output", "label", "kto_tag",
])  # fmt: skip
BROKEN_ROW = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE | JUNK, min_size=1, max_size=4)}, optional={"system": WORDS, "tools": JUNK}
)

SAID = st.sampled_from(
    ["", "a", " a\n", "<think>r</think>a", "r</think>\n\n a", "<think>\n\n</think>a</think>", "<think>a"]
)
ARGUMENTS = st.sampled_from([{}, None, "", "null", '{"a": "é"}', {"a": [1, None, {"b": 0.5}]}])
CALL = st.builds(
    lambda key, arguments, id_, wrap: wrap({"name": "f", key: arguments}) | id_,
    st.sampled_from(["arguments", "args", "parameters", "input"]),
    ARGUMENTS,
    st.sampled_from([{}, {"id": "c1"}, {"call_id": "c2"}, {"id": None}]),
    st.sampled_from([lambda call: call, lambda call: {"type": "function", "function": call}]),
)
PARTS = st.builds(
    lambda thoughts, texts, calls: thoughts + texts + calls,
    st.lists(st.sampled_from([{"type": "thinking", "thinking": "s"}, {"type": "reasoning", "text": ""}]), max_size=1),
    st.lists(SAID | st.builds(lambda text: {"type": "output_text", "text": text}, SAID), max_size=2),
    st.lists(st.builds(lambda call: {**call, "type": "tool_use"}, CALL), max_size=2),
)
WEIGHTS = st.sampled_from([{}, {"weight": 0.5, "train": True}, {"loss": False}, {"loss_weight": 0, "train": None}])
ANSWER = st.builds(
    lambda content, fields, weights: {"role": "assistant", "content": content, **fields, **weights},
    SAID | PARTS,
    st.fixed_dictionaries({}, optional={
        "tool_calls": st.lists(CALL, max_size=2) | st.lists(CALL, max_size=2).map(json.dumps),
        "function_call": st.none() | CALL, "reasoning_content": st.sampled_from(["", "r", None]),
        "thinking": st.sampled_from(["", "r\n"]), "name": st.sampled_from(["Ann", None]),
    }),
    WEIGHTS,
)  # fmt: skip
CALLED = st.builds(
    lambda key, calls, weights: {key: "tool_call", "content": calls, **weights},
    st.sampled_from(["role", "from"]),
    CALL | CALL.map(json.dumps) | st.lists(CALL, min_size=1, max_size=2),
    WEIGHTS,
)
HEARD = st.sampled_from([
    {"from": "observation", "value": "x"}, {"role": "tool", "content": "x", "tool_call_id": "c1", "name": "f"},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": ["x"]}, "and?"], "name": "Bo"},
    {"type": "function_call_output", "call_id": "c1", "output": "x"}, {"role": "function", "name": "f", "content": "x"},
    {"role": "user", "content": "<think>x</think>", "train": True}, {"from": "human", "value": " x"},
])  # fmt: skip
ROW = st.builds(
    lambda system, said, given, tools: {"messages": system + said} | given | tools,
    st.lists(st.sampled_from([{"role": "system", "content": "s"}, {"role": "developer", "content": ""}]), max_size=2),
    st.lists(ANSWER | CALLED | HEARD, max_size=4).map(lambda said: [*said, {"role": "assistant", "content": "a"}]),
    st.sampled_from([{}, {"system": "s"}, {"system": "t"}, {"system": ""}]),
    st.sampled_from(
        [{}, {"tools": [{"name": "f", "input_schema": {}}]}, {"functions": '[{"name": "f"}]'}, {"tools": ""}]
    ),
)
"""Rows of which many are in order, in as many spellings as there are."""


def read_or_faults(row: Any) -> Conversation | tuple[Problem, ...]:
    try:
        return read(row)
    except FaultyRow as faulty:
        return faulty.problems


def check(row: Any) -> bool:
    """Check that ``row`` reads back equal, or that its faults can be shown; tell which."""
    found = read_or_faults(row)
    if not isinstance(found, Conversation):
        assert all(problem.fix and str(problem).encode() for problem in found)
        return False
    written = json.loads(json.dumps(to_messages(found), ensure_ascii=False, allow_nan=False).encode())
    assert read(written) == found
    return True


@settings(max_examples=300)
@given(row=BROKEN_ROW | st.dictionaries(NAMES, JUNK, max_size=5) | JUNK)
def test_any_value_is_a_conversation_or_has_faults(row: Any) -> None:
    check(row)


def test_every_spelling_reads_back_equal() -> None:
    outcomes: list[bool] = []

    @settings(max_examples=300)
    @given(row=ROW)
    def examples(row: Any) -> None:
        outcomes.append(check(row))

    examples()
    assert sum(outcomes) > 100


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


@st.composite
def any_preference(draw: st.DrawFn) -> Pair | Judged:
    conversation = draw(any_conversation())
    turns = tuple(turn._replace(weight=1.0) for turn in conversation.turns)
    while turns[-1].role != "user":
        turns = turns[:-1]
    prompt = Conversation(turns, conversation.tools, HERE)
    said = [draw(answers())._replace(weight=1.0) for _ in range(2)]
    heard = Turn("tool", draw(TEXT), name=draw(st.none() | TEXT), tool_call_id=draw(st.none() | TEXT))
    answer = (said[0], heard, said[1]) if draw(st.booleans()) else (said[0],)
    return Judged(prompt, answer, draw(st.booleans())) if draw(st.booleans()) else Pair(prompt, answer, (said[1],))


@given(preference=any_preference())
def test_converted_preferences_read_back_equal(preference: Pair | Judged) -> None:
    row = json.loads(json.dumps(to_row(preference), ensure_ascii=False))
    assert RowReader(Options(kinds=ANY_KIND)).read(row, HERE) == preference


@settings(max_examples=200)
@given(row=st.dictionaries(SIDES_AND_PROMPTS, JUNK | st.lists(MESSAGE, max_size=3) | WORDS, max_size=5))
def test_any_value_is_a_preference_or_has_faults(row: Any) -> None:
    read = preference_or_faults(row)
    if isinstance(read, tuple):
        assert all(problem.fix and str(problem).encode() for problem in read)
        return
    written = json.loads(json.dumps(to_row(read), ensure_ascii=False, allow_nan=False).encode())
    assert preference_or_faults(written) == read


def preference_or_faults(row: Any) -> Row | tuple[Problem, ...]:
    try:
        return RowReader(Options(kinds=ANY_KIND)).read(row, HERE)
    except FaultyRow as faulty:
        return faulty.problems
