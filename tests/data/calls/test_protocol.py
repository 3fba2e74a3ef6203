"""Calls in OpenAI's protocol: every result names its call, and pieces of a stream are whole calls again."""

from __future__ import annotations

from typing import Any

import pytest

from weitune.data.calls.protocol import StreamedCalls, with_call_ids
from weitune.data.conversation import ToolCall, Turn


def ids(*turns: Turn) -> list[list[str | None]]:
    """Return the ids of the calls of each turn, or the one that its result names."""
    named = with_call_ids(turns)
    return [[call.id for call in turn.tool_calls] if turn.tool_calls else [turn.tool_call_id] for turn in named]


def called(*given: str | None) -> Turn:
    return Turn("assistant", "", tool_calls=tuple(ToolCall("f", {}, id_) for id_ in given))


def result(id_: str | None = None) -> Turn:
    return Turn("tool", "x", tool_call_id=id_)


def test_ids_that_are_there_are_kept() -> None:
    turns = (Turn("user", "q"), called("a", "b"), result("b"), result("a"), called("a"), result("a"))
    assert with_call_ids(turns) == turns


def test_results_without_an_id_answer_the_open_calls_in_order() -> None:
    assert ids(called(None, None), result(), result()) == [["call00000", "call00001"], ["call00000"], ["call00001"]]
    assert ids(called("a", "b"), result("a"), result()) == [["a", "b"], ["a"], ["b"]]
    assert ids(called(None), result("lost")) == [["call00000"], ["call00000"]]
    assert ids(called(None), result(), called(None), result())[2:] == [["call00001"], ["call00001"]]


def test_new_ids_are_free_ones() -> None:
    assert ids(called(None), called("call00000")) == [["call00001"], ["call00000"]]


def test_a_result_without_a_call_stays_as_it_is() -> None:
    assert ids(result(), result("x")) == [[None], ["x"]]


def streamed(*events: list[dict[str, Any]]) -> tuple[ToolCall, ...] | None:
    calls = StreamedCalls()
    for event in events:
        calls.add(event)
    return calls.read()


def test_pieces_become_calls() -> None:
    assert streamed(
        [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"x": '}}],
        [{"index": 1, "id": "b", "function": {"name": "g"}}, {"index": 0, "function": {"arguments": "1}"}}],
    ) == (ToolCall("f", {"x": 1}, "a"), ToolCall("g", {}, "b"))


def test_another_id_at_the_same_index_is_another_call() -> None:
    whole = [[{"index": 0, "id": id_, "function": {"name": "f", "arguments": "{}"}}] for id_ in "ab"]
    assert streamed(*whole) == (ToolCall("f", {}, "a"), ToolCall("f", {}, "b"))


@pytest.mark.parametrize("arguments", ['{"x": ', "[1]", '{"x": NaN}', '{"x": "\\ud83d"}', "[" * 100_000])
def test_what_is_no_call_is_told(arguments: str) -> None:
    assert streamed([{"index": 0, "function": {"name": "f", "arguments": arguments}}]) is None
    assert streamed([{"index": 0, "function": {"arguments": "{}"}}]) is None
