"""Reasoning in the rows of every format: in tags, in fields and in parts, and contradictions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.read.reading_rows import ASKED, assistant, fault, messages, read, speeches, turns, user
from weitune.data.conversation import ToolCall, Turn
from weitune.data.formats.reasoning import split_reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "rest"),
    [
        ("a", None, "a"),
        ("<think>r</think>a", "r", "a"),
        (" \n<think>\nr\n</think>\n\na", "r", "a"),
        ("<think>\n\n</think>\n\na", "", "a"),
        ("<think></think>a", "", "a"),
        ("r\n</think>\n\na", "r", "a"),
        ("</think>a", "", "a"),
        ("<think>r</think>\n\n    return 1\n", "r", "    return 1\n"),
        ("<think>\n  r \n</think> \n a", "  r ", " \n a"),
        ("<think>r</think>", "r", ""),
        ("<think>r", None, "<think>r"),
        ("see <think>r</think>a", None, "see <think>r</think>a"),
        ("<think>r</think>b</think>a", "r", "b</think>a"),
        ("r</think>see <think>b</think>", "r", "see <think>b</think>"),
    ],
)
def test_reasoning_in_tags(text: str, reasoning: str | None, rest: str) -> None:
    assert split_reasoning(text) == (reasoning, rest)


PIECES = st.lists(st.sampled_from(["a", "</thin", "\n", " ", "\t", "思"]), max_size=4).map("".join)


@given(before=st.sampled_from(["", " ", "\n\t"]), reasoning=PIECES, rest=PIECES, opened=st.booleans())
def test_reasoning_is_cut_where_qwen3_cuts_it(before: str, reasoning: str, rest: str, opened: bool) -> None:
    """Qwen3's template takes the text between the last opening tag and the closing one, without line breaks."""
    text = f"{before}<think>{reasoning}</think>{rest}" if opened else f"{reasoning}</think>{rest}"
    head, _, tail = text.partition("</think>")
    assert split_reasoning(text) == (head.rpartition("<think>")[2].strip("\n"), tail.lstrip("\n"))


@pytest.mark.parametrize(
    "row",
    [
        messages(user(), assistant("<think>\nr\n</think>\n\n  a")),
        messages(user(), assistant("r\n</think>\n\n  a")),
        messages(user(), assistant("  a", reasoning_content="r")),
        messages(user(), assistant("  a", reasoning="r", thinking=None)),
        messages(user(), assistant("  a", thinking="r", reasoning_content="")),
        messages(user(), assistant("  a", thinking="\nr\n", reasoning="r")),
        messages(user(), assistant("<think>r</think>  a", reasoning_content="r")),
        messages(user(), assistant("<think>r</think>  a", reasoning_content="")),
        messages(user(), assistant([{"type": "thinking", "thinking": "r", "signature": "s"}, "  a"])),
        messages(user(), assistant([{"type": "reasoning", "value": "r"}, {"type": "text", "value": "  a"}])),
        messages(user(), assistant(["<think>r</think>", "  a"])),
        speeches(human="q", gpt="<think>\nr\n</think>\n\n  a"),
        speeches(human="q", gpt="r</think>  a"),
        {"instruction": "q", "output": "<think>\nr\n</think>\n  a"},
        {"instruction": "q", "output": "r\n</think>\n\n  a"},
        {"prompt": "q", "completion": "<think>r</think>  a"},
        {"conversation": [{"input": "q", "output": "r</think>  a"}]},
    ],
)
def test_reasoning_in_every_place(row: dict[str, Any]) -> None:
    assert read(row).turns == (ASKED, Turn("assistant", "  a", reasoning="r"))


def test_reasoning_in_a_column_and_in_history() -> None:
    columns = {"user": "问题", "assistant": "回答"}
    assert read({"问题": "q", "回答": "r</think>a"}, columns=columns).turns[1] == Turn("assistant", "a", reasoning="r")
    row = {"instruction": "q", "output": "a", "history": [["x", "<think>r</think>y"]]}
    assert read(row).turns[1] == Turn("assistant", "y", reasoning="r")


@pytest.mark.parametrize(
    "said",
    [
        assistant(reasoning_content=""),
        assistant(reasoning_content="", reasoning="", thinking=None),
        assistant("<think>\n\n</think>\n\na"),
        assistant("</think>a"),
        assistant([{"type": "thinking", "thinking": ""}, "a"]),
    ],
)
def test_empty_reasoning_differs_from_none(said: dict[str, Any]) -> None:
    assert turns(user(), said)[1] == Turn("assistant", "a", reasoning="")
    assert turns(user(), assistant(reasoning_content=None))[1] == Turn("assistant", "a")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (assistant(reasoning_content="r", thinking="s"), "`reasoning_content` with the string 'r', `thinking`"),
        (assistant("<think>s</think>a", reasoning_content="r"), "`reasoning_content` with the string 'r', `content`"),
        (assistant([{"type": "thinking", "thinking": "s"}, "a"], reasoning="r"), "`reasoning` with the string 'r'"),
        (assistant([{"type": "thinking", "thinking": "s"}, "<think>r</think>a"]), "`content` with the string 's'"),
        (assistant("<think>r</think>\n<think>s</think>a"), "a second one in tags"),
        (assistant("r</think><think>s</think>a"), "a second one in tags"),
    ],
)
def test_contradictory_reasoning(said: dict[str, Any], named: str) -> None:
    problem = fault(messages(user(), said))
    assert problem.kind == "two reasoning texts"
    assert named in problem.found
    assert problem.field.startswith("messages[1]")


def test_a_closing_tag_beside_given_reasoning_is_text() -> None:
    said = turns(user(), assistant("Close with </think>.", reasoning_content="r"))
    assert said[1] == Turn("assistant", "Close with </think>.", reasoning="r")


def test_reasoning_before_calls() -> None:
    calls = [{"name": "tides", "arguments": {}}]
    called = Turn("assistant", "", reasoning="r", tool_calls=(ToolCall("tides", {}),))
    assert turns(user(), assistant("", reasoning_content="r", tool_calls=calls))[1] == called
    assert turns(user(), assistant(None, reasoning_content="r", tool_calls=calls))[1] == called
    assert turns(user(), assistant("<think>\nr\n</think>\n\n", tool_calls=calls))[1] == called
    parts = [{"type": "thinking", "thinking": "r"}, {"type": "tool_use", "name": "tides", "input": {}}]
    assert turns(user(), assistant(parts))[1] == called


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_tags_of_other_roles_are_text(role: str) -> None:
    text = "<think>r</think>a"
    said = [{"role": role, "content": text}, user(), assistant()]
    assert read(messages(*said)).turns[0] == Turn(role, text)
    assert read({"instruction": text, "output": "a"}).turns[0] == Turn("user", text)


@pytest.mark.parametrize("value", [3, True, ["r"], {"effort": "high"}])
def test_reasoning_that_is_not_a_string(value: Any) -> None:
    problem = fault(messages(user(), assistant(reasoning=value)))
    assert (problem.kind, problem.field) == ("wrong type", "messages[1].reasoning")


def test_a_cell_of_messages_with_raw_output() -> None:
    cell = json.dumps([user(), assistant("The moon is full.\n</think>\n\nAt noon.")])
    assert read({"messages": cell}).turns == (ASKED, Turn("assistant", "At noon.", reasoning="The moon is full."))
