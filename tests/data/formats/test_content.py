"""Lists of parts: which become text, reasoning, calls and tool turns, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.read.reading_rows import ASKED, assistant, fault, faults, messages, tool, turns, unread, user
from weitune.data.conversation import ToolCall, Turn

TEXT = {"type": "text", "text": "a"}
THINKING = {"type": "thinking", "thinking": "r", "signature": "s"}
USE = {"type": "tool_use", "id": "c1", "name": "tides", "input": {"port": "Brest"}}
CALL = ToolCall("tides", {"port": "Brest"}, "c1")


@pytest.mark.parametrize(
    "part",
    [
        "a",
        TEXT,
        {"type": "text", "value": "a"},
        {"type": "text", "content": "a"},
        {"text": "a"},
        {"type": None, "text": "a"},
        {"type": "output_text", "text": "a"},
        {"type": "input_text", "text": "a"},
        {"type": "text", "text": None, "value": "a"},
    ],
)
def test_texts(part: Any) -> None:
    assert turns(user([part]), assistant([part, part])) == (Turn("user", "a"), Turn("assistant", "aa"))


@pytest.mark.parametrize(
    "part",
    [
        THINKING,
        {"type": "thinking", "thinking": [{"type": "text", "text": "r"}]},
        {"type": "reasoning", "reasoning": "r"},
        {"type": "reasoning", "text": "r"},
        {"type": "reasoning", "value": "r"},
    ],
)
def test_reasoning(part: Any) -> None:
    assert turns(user(), assistant([part, TEXT]))[1] == Turn("assistant", "a", reasoning="r")
    assert turns(user(), assistant([part, part, TEXT]))[1] == Turn("assistant", "a", reasoning="r\nr")


def test_calls() -> None:
    said = turns(user(), assistant([THINKING, TEXT, USE, {**USE, "id": "c2", "input": {}}]))
    assert said[1] == Turn("assistant", "a", reasoning="r", tool_calls=(CALL, ToolCall("tides", {}, "c2")))
    as_text = {"type": "tool_call", "value": '{"name": "tides", "arguments": {"port": "Brest"}, "id": "c1"}'}
    assert turns(user(), assistant([as_text]))[1] == Turn("assistant", "", tool_calls=(CALL,))
    problem = fault(messages(user(), assistant([{"type": "tool_use", "name": "tides", "input": "Brest"}])))
    assert problem.field == "messages[1].content[0].input"


def test_calls_in_two_places_are_taken_once() -> None:
    listed = [{"name": "tides", "args": {"port": "Brest"}, "id": "c1", "type": "tool_call"}]
    assert turns(user(), assistant([TEXT, USE], tool_calls=listed))[1] == Turn("assistant", "a", tool_calls=(CALL,))
    kwargs = {"tool_calls": [{"id": "c1", "function": {"name": "tides", "arguments": '{"port": "Brest"}'}}]}
    assert turns(user(), assistant([USE], additional_kwargs=kwargs))[1].tool_calls == (CALL,)
    assert turns(user(), assistant(None, additional_kwargs=kwargs))[1].tool_calls == (CALL,)
    problem = fault(messages(user(), assistant([{**USE, "input": {}}], tool_calls=listed)))
    assert (problem.kind, problem.field) == ("calls twice", "messages[1].content")


def test_a_result_of_langchain_keeps_the_id_of_its_call() -> None:
    for key in ("tool_call_id", "call_id"):
        result = {"type": "tool", "content": "noon", key: "c1"}
        assert turns(user(), assistant([USE]), result, assistant())[2] == Turn("tool", "noon", tool_call_id="c1")


def test_results_become_turns_of_tools() -> None:
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "noon"}
    heard = Turn("tool", "noon", tool_call_id="c1")
    assert turns(user(), assistant([USE]), user([result]), assistant())[2] == heard
    parts = {**result, "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "on"}]}
    assert turns(user([{**result, "content": ["no", "on"]}]), assistant())[0] == heard
    last = {"type": "tool_result", "tool_use_id": "c2"}
    said = turns(user(), assistant([USE]), user([parts, last, {"type": "text", "text": "And now?"}]), assistant())
    assert said[2:5] == (heard, Turn("tool", "", tool_call_id="c2"), Turn("user", "And now?"))
    assert turns(user(), assistant([USE]), tool([result]), assistant())[2] == heard
    assert turns(user(["q", result], name="Ann"), assistant())[:2] == (Turn("user", "q", name="Ann"), heard)
    assert unread(messages(user([{**result, "is_error": True}]), assistant())) == {"messages[].content[].is_error": 1}


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "image_url"),
        ({"type": "image", "image": "x.png"}, "image"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio"),
        ({"type": "video", "video": "x.mp4"}, "video"),
        ({"type": "redacted_thinking", "data": "x"}, "redacted_thinking"),
        ({"type": 3}, "3"),
    ],
)
def test_other_parts_are_refused_by_name(part: Any, found: str) -> None:
    for row in (messages(user([TEXT, part]), assistant()), messages(user(), assistant([TEXT, part]))):
        problem = fault(row)
        assert problem.kind == "not text"
        assert problem.field.endswith(".content[1].type")
        assert found in problem.found


def test_a_picture_in_a_tool_result() -> None:
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "image", "source": {}}]}
    problem = fault(messages(user([result]), assistant()))
    assert (problem.kind, problem.field) == ("not text", "messages[0].content[0].content[0]")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (messages(user([THINKING]), assistant()), "messages[0].content[0]"),
        (messages(user([USE]), assistant()), "messages[0].content[0]"),
        (messages(user(), assistant([{"type": "tool_result", "content": "x"}, TEXT])), "messages[1].content[0]"),
        (messages({"role": "system", "content": [THINKING]}, user(), assistant()), "messages[0].content[0]"),
        (messages(user(), assistant(), tool([USE])), "messages[2].content[0]"),
    ],
)
def test_parts_of_another_role(row: Any, field: str) -> None:
    problem = fault(row)
    assert (problem.kind, problem.field) == ("wrong role", field)


@pytest.mark.parametrize("parts", [[TEXT, THINKING], [USE, TEXT], [USE, THINKING]])
def test_parts_out_of_order(parts: list[Any]) -> None:
    problem = fault(messages(user(), assistant(parts)))
    assert (problem.kind, problem.field) == ("parts out of order", "messages[1].content[1]")


def test_blank_text_may_be_out_of_order() -> None:
    blank = {"type": "text", "text": "\n"}
    assert turns(user(), assistant([USE, blank]))[1] == Turn("assistant", "\n", tool_calls=(CALL,))


def test_unread_keys_of_parts_are_counted() -> None:
    part = {"type": "text", "text": "a", "annotations": [], "image": None}
    assert unread(messages(user([part, part]), assistant([part]))) == {"messages[].content[].annotations": 3}


def test_faults_within_parts_have_their_place() -> None:
    said = [{"type": "text"}, 3, None, {"type": "text", "text": "\ud83d"}, "\ud83d"]
    found = [(problem.kind, problem.field) for problem in faults(messages(user(said), assistant()))]
    assert found == [
        ("missing field", "messages[0].content[0].text"),
        ("wrong type", "messages[0].content[1]"),
        ("wrong type", "messages[0].content[2]"),
        ("undecodable text", "messages[0].content[3].text"),
        ("undecodable text", "messages[0].content[4]"),
    ]


def test_a_list_of_one_text_is_that_text() -> None:
    assert turns(user(["q"]), assistant([])) == (ASKED, Turn("assistant", ""))
