"""What the rows of each format become, how formats are recognised, and the faults of bad rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.files import as_table
from tests.data.read.reading_rows import (
    ANSWERED,
    ASKED,
    HERE,
    assistant,
    fault,
    faults,
    messages,
    read,
    speeches,
    turns,
    unread,
    user,
)
from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.formats.parse import Options, RowReader, recognise
from weitune.data.problems import shown_name
from weitune.data.read.conversations import Reader
from weitune.errors import RecipeError
from weitune.messages import say

SYSTEM = Turn("system", "s")


def system(content: Any = "s", **fields: Any) -> dict[str, Any]:
    return {"role": "system", "content": content, **fields}


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
        ({"prompt": "q", "response": "a"}, (ASKED, ANSWERED)),
        (
            {"query": "q", "response": "a", "history": [["x", "y"]]},
            (Turn("user", "x"), Turn("assistant", "y"), ASKED, ANSWERED),
        ),
        ({"question": "q", "answer": "a", "system": "s"}, (SYSTEM, ASKED, ANSWERED)),
        ({"conversation": [{"input": "q", "output": "a", "system": "s"}]}, (SYSTEM, ASKED, ANSWERED)),
        ({"conversation": [{"human": "q", "assistant": "a"}] * 2}, (ASKED, ANSWERED) * 2),
        ({"conversation": [user(), assistant()], "system": "s"}, (SYSTEM, ASKED, ANSWERED)),
        (speeches(human="q", gpt="a"), (ASKED, ANSWERED)),
        ({**speeches(human="q", gpt="a"), "system": "s"}, (Turn("system", "s"), ASKED, ANSWERED)),
        (speeches(human="q", gpt="a", user="q", chatgpt="a"), (ASKED, ANSWERED) * 2),
        (speeches(human="q", bing="a", user="q", bard="a"), (ASKED, ANSWERED) * 2),
        (speeches(human="q", model="a", user="q", ai="a"), (ASKED, ANSWERED) * 2),
        ({"conversations": [user(), assistant()]}, (ASKED, ANSWERED)),
        ({"messages": speeches(human="q", gpt="a")["conversations"]}, (ASKED, ANSWERED)),
        (
            {"messages": [user(), {"from": "gpt", "value": "a"}, {"role": "user", "value": "q"}, assistant()]},
            (ASKED, ANSWERED) * 2,
        ),
        ({"messages": json.dumps([user(), assistant()])}, (ASKED, ANSWERED)),
        ({"conversations": "\n" + json.dumps(speeches(human="q", gpt="a")["conversations"])}, (ASKED, ANSWERED)),
        (messages(user(), assistant(), system="s"), (Turn("system", "s"), ASKED, ANSWERED)),
        (messages(user(), assistant(), system=[{"type": "text", "text": "s"}]), (SYSTEM, ASKED, ANSWERED)),
        (messages({"role": "developer", "content": "s"}, assistant()), (Turn("system", "s"), ANSWERED)),
        (messages(user([{"type": "text", "text": "q"}]), assistant()), (ASKED, ANSWERED)),
        (messages(user(), assistant([{"type": "text", "value": "a"}, "b"])), (ASKED, Turn("assistant", "ab"))),
        (messages(user(), assistant(loss_weight=0.5)), (ASKED, Turn("assistant", "a", 0.5))),
        (messages(user(), assistant(reasoning_content="r", weight=0)), (ASKED, Turn("assistant", "a", 0.0, "r"))),
        (messages(user(), assistant("<think>\nr\n</think>\n\na")), (ASKED, Turn("assistant", "a", reasoning="r"))),
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
def test_wrong_columns(columns: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="columns"):
        Options(columns=columns)


def test_unknown_formats_are_refused() -> None:
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
        ({"instruction": "q", "output": "a", "history": {"q": "a"}}, "wrong type", "history[0]"),
        ({"instruction": "q", "output": "a", "history": "[['x', 'y']]"}, "not valid JSON", "history"),
        ({"instruction": "q", "output": "a", "history": '[["x"]]'}, "wrong type", "history[0]"),
        ({"instruction": "q", "output": "a", "history": [["x", "\ud83d"]]}, "undecodable text", "history[0]"),
        ({"messages": "[]"}, "empty conversation", "messages"),
        ({"messages": "{}"}, "wrong type", "messages"),
        ({"messages": "[{"}, "not valid JSON", "messages"),
        ({"messages": "[{'role': 'user', 'content': 'q'}]"}, "not valid JSON", "messages"),
        ({"messages": "[" * 5000}, "not valid JSON", "messages"),
        ({"conversations": '["q"]'}, "wrong type", "conversations[0]"),
        ({"conversation": [{"input": "q", "output": "a"}, "q"]}, "wrong type", "conversation[1]"),
        ({"conversation": [{"input": "q", "output": "a"}, {"input": "q"}]}, "missing field", "conversation[1].output"),
        (messages({"role": "us\ud83der", "content": "q"}), "undecodable text", "messages[0].role"),
        (messages({"role": ["user"], "content": "q"}), "wrong type", "messages[0].role"),
        (messages({"role": None, "content": "q"}), "null field", "messages[0].role"),
        (messages(user(name="\ud83d")), "undecodable text", "messages[0].name"),
        (messages({"role": "tool", "content": "x", "tool_call_id": 3}), "wrong type", "messages[0].tool_call_id"),
        ({"conversations": [{"from": "human"}]}, "missing field", "conversations[0].value"),
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
def test_bad_rows_name_field_and_fix(row: Any, kind: str, field: str) -> None:
    found = [(problem.kind, problem.field) for problem in faults(row)]
    assert (kind, field) in found
    for problem in faults(row):
        assert problem.fix
        assert problem.place.startswith("rows.json row 4")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (messages(user(), assistant()), "messages"),
        ({"messages": "[]"}, "messages"),
        (speeches(human="q", gpt="a"), "sharegpt"),
        ({"conversations": [user(), assistant()]}, "messages"),
        ({"conversations": json.dumps([user(), assistant()])}, "messages"),
        ({"conversations": json.dumps(speeches(human="q", gpt="a")["conversations"])}, "sharegpt"),
        ({"conversation": [{"input": "q", "output": "a"}]}, "sharegpt"),
        ({"conversation": json.dumps([user(), assistant()])}, "messages"),
        ({"instruction": "q", "output": "a", "conversation": [1]}, "alpaca"),
        ({"question": "q", "output": "a"}, "alpaca"),
        ({"prompt": "q", "response": "a"}, "prompt-completion"),
        ({"query": "q", "response": "a"}, "prompt-completion"),
        ({"question": "q", "answer": "a"}, "prompt-completion"),
        ({"question": "q", "response": "a"}, None),
        ({"conversation": "c1"}, None),
        ({"text": "q"}, None),
    ],
)
def test_formats_are_recognised(row: dict[str, Any], expected: str | None) -> None:
    assert recognise(row) == expected


def test_every_fault_of_a_row_is_named() -> None:
    row = {"messages": [{"role": "bot", "content": 1}, {"role": "user", "content": None}]}
    assert [p.field for p in faults(row)] == ["messages[0].role", "messages[0].content", "messages[1].content"]


def test_fields_that_nothing_reads_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    messages = [{"role": "user", "content": "q", "mood": "x"}, {"role": "assistant", "content": "a", "mood": "y"}]
    path.write_text(json.dumps([{"messages": messages, "id": 1}, {"messages": messages}]), encoding="utf-8")
    reader = Reader([str(path)], Options())
    assert len(list(reader.conversations())) == 2
    assert reader.reports[0].notes.unused == {"messages[].mood": 4, "id": 1}


def test_the_first_row_that_is_recognised_decides(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[Any] = [{}, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    reader = Reader([str(path)], Options())
    assert len(list(reader.conversations())) == 1
    assert reader.reports[0].format == "prompt-completion"
    assert {problem.row for problem in reader.problems} == {1, 3}


@pytest.mark.parametrize("history", ["", " ", "[]", "null", None, []])
def test_empty_history(history: Any) -> None:
    assert read({"instruction": "q", "output": "a", "history": history}).turns == (ASKED, ANSWERED)


def test_history_in_a_table(tmp_path: Path) -> None:
    rows = [
        {"instruction": "q", "input": "", "output": "a", "system": "", "history": history}
        for history in ("", "[]", json.dumps([["x", "y"]]))
    ]
    path = tmp_path / "rows.csv"
    path.write_text(as_table(rows, ","), encoding="utf-8")
    reader = Reader([str(path)], Options())
    said = [conversation.turns for _, conversation in reader.conversations()]
    assert said == [(ASKED, ANSWERED)] * 2 + [(Turn("user", "x"), Turn("assistant", "y"), ASKED, ANSWERED)]
    assert not reader.problems


def test_messages_and_calls_in_a_table(tmp_path: Path) -> None:
    said = [user(), assistant("", tool_calls=json.dumps([{"name": "tides", "args": {"port": "Brest"}}]))]
    tools = json.dumps([{"name": "tides"}])
    path = tmp_path / "rows.csv"
    path.write_text(as_table([{"messages": json.dumps(said), "tools": tools}], ","), encoding="utf-8")
    reader = Reader([str(path)], Options())
    ((_, conversation),) = reader.conversations()
    assert conversation.turns[1].tool_calls == (ToolCall("tides", {"port": "Brest"}),)
    assert conversation.tools == ({"type": "function", "function": {"name": "tides"}},)
    assert reader.reports[0].format == "messages"


@pytest.mark.parametrize(
    ("row", "expected", "noted"),
    [
        (messages(system(), user(), assistant()), "s", 0),
        (messages(system("s"), system("t"), user(), assistant()), "s\n\nt", 1),
        (messages(system(), {"role": "developer", "content": "t"}, user(), assistant()), "s\n\nt", 1),
        (messages(system("t"), user(), assistant(), system="s"), "s\n\nt", 1),
        (messages(system("t"), system("u"), user(), assistant(), system="s"), "s\n\nt\n\nu", 1),
        (messages(system("s"), user(), assistant(), system="s"), "s", 0),
        (messages(system(""), user(), assistant(), system="s"), "s", 0),
        (messages(system(""), system(" "), user(), assistant()), "", 0),
        (messages(system("s"), user(), assistant(), system=""), "s", 0),
        ({**speeches(system="t", human="q", gpt="a"), "system": "s"}, "s\n\nt", 1),
        ({"prompt": [system("t"), user()], "completion": "a", "system": "s"}, "s\n\nt", 1),
    ],
)
def test_system_prompts_are_joined(row: dict[str, Any], expected: str, noted: int) -> None:
    reader = RowReader(Options())
    assert reader.read(row, HERE).turns == (Turn("system", expected), ASKED, ANSWERED)
    assert reader.notes.remarks[say("data.parse.several_system_prompts")] == noted


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (messages(user(), system(), assistant()), "messages[1]"),
        (messages(system(), user(), assistant(), system(), user(), assistant()), "messages[3]"),
        (messages(user(), assistant(), {"role": "developer", "content": "t"}, system="s"), "messages[2]"),
        (speeches(human="q", system="s", gpt="a"), "conversations[1]"),
        ({"prompt": "q", "completion": [system(), assistant()]}, "completion[0]"),
        ({"prompt": [system(), user()], "completion": "a", "history": [["x", "y"]]}, "prompt[0]"),
        ({"conversation": [{"input": "q", "output": "a"}, {"input": "q", "output": "a", "system": "s"}]},
         "conversation[1].system"),
    ],
)  # fmt: skip
def test_a_system_prompt_within_the_dialogue(row: dict[str, Any], field: str) -> None:
    problem = fault(row)
    assert (problem.kind, problem.field) == ("system prompt within the dialogue", field)


def test_the_report_counts_joined_system_prompts(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = messages(system(), user(), assistant())
    path.write_text(json.dumps([row, {**row, "system": "t"}, {**row, "system": "u"}]), encoding="utf-8")
    reader = Reader([str(path)], Options())
    assert len(list(reader.conversations())) == 3
    assert reader.reports[0].to_json()["remarks"] == {say("data.parse.several_system_prompts"): 2}


def test_prompt_and_completion_may_be_messages_as_json() -> None:
    row = {"prompt": [user()], "completion": [assistant()]}
    expected = read(row).turns
    assert expected == (ASKED, ANSWERED)
    assert read({**row, "prompt": user()}).turns == expected
    assert read({key: json.dumps(value) for key, value in row.items()}).turns == expected
    assert [p.kind for p in faults({key: str(value) for key, value in row.items()})] == ["not valid JSON"] * 2
    text = json.dumps([user()])
    assert read({"prompt": text, "completion": "a"}).turns == (Turn("user", text), ANSWERED)


def test_nulls_in_calls_and_tools_are_reported(tmp_path: Path) -> None:
    def row(arguments: Any, schema: Any) -> dict[str, Any]:
        call = {"function": {"name": "tides", "arguments": arguments}}
        tools = [{"name": "tides", "parameters": schema}]
        return messages(user(), assistant(None, tool_calls=[call, call]), assistant(), tools=tools)

    rows = [
        row({"port": "Brest", "year": None}, {}),
        row({"inner": [{"x": None}]}, {}),
        row({}, {"properties": {"port": {"type": "string", "enum": None}}}),
        row({"ports": [None]}, {"enum": [None]}),
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    reader = Reader([str(path)], Options())
    [first, *_] = [conversation for _, conversation in reader.conversations()]
    assert first.turns[1].tool_calls[0].arguments == {"port": "Brest", "year": None}
    assert reader.reports[0].to_json()["remarks"] == {say("data.tool_calls.null_in_a_call_or_tool"): 3}


@pytest.mark.parametrize("name", ["output\u200b", "\ufeffoutput", "output ", "ｏｕｔｐｕｔ", "out\u00adput", "Output"])
def test_required_fields_whose_names_contain_invisible_characters(name: str) -> None:
    problem = fault({"instruction": "q", name: "a"})
    assert (problem.kind, problem.field) == ("missing field", "output")
    assert problem.found == f"no field `output`, but one named `{shown_name(name)}`"
    assert "Rename the field" in problem.fix


@pytest.mark.parametrize("name", ["input\u200b", "input ", "ｓｙｓｔｅｍ", "\ufeffhistory"])
def test_optional_fields_whose_names_contain_invisible_characters(name: str) -> None:
    problem = fault({"instruction": "q", "output": "a", name: "x"})
    assert problem.kind == "misnamed field"
    assert problem.found == f"`{shown_name(name)}`"
    assert problem.expected == f"the name `{problem.field}`"
    assert unread({"instruction": "q", "input": "", "output": "a", "input ": "x"}) == {r"input\x20": 1}
    assert unread({"instruction": "q", "output": "a", "System": "x"}) == {"System": 1}


def test_keys_of_messages_and_calls_that_contain_invisible_characters() -> None:
    call = {"name": "tides", "arguments\u200b": {"port": "Brest"}}
    row = messages(user(**{"train\u200b": True}), assistant(None, tool_calls=[call]))
    found = [(problem.kind, problem.field) for problem in faults(row)]
    assert found == [("missing field", "messages[1].tool_calls[0].arguments"), ("misnamed field", "messages[0].train")]


def test_names_of_an_unknown_format_are_shown() -> None:
    problem = fault({"\ufeffmessages": [], "out\u200bput ": "a", "": "q"})
    assert problem.found == r'the fields \ufeffmessages, out\u200bput\x20, ""'


def test_unread_names_can_be_printed_and_written() -> None:
    row = {"instruction": "q", "output": "a", "mood\ud83d": 1, "id\u200b": 2, "心情": 3}
    assert unread(row) == {r"mood\ud83d": 1, r"id\u200b": 1, "心情": 1}


def nest(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("place", ["output", "system", "history", "messages", "conversations", "kto_tag"])
def test_values_nested_too_deeply(place: str) -> None:
    row = {"instruction": "q", "output": "a", place: nest(100_000)}
    (problem,) = faults(row)
    assert problem.row == 4


def test_tools_nested_too_deeply() -> None:
    assert fault(messages(user(), assistant(), tools=nest(100_000))).field == "tools"


def test_unread_values_may_be_nested_deeply() -> None:
    assert turns(user(trace=nest(100_000)), assistant()) == (ASKED, ANSWERED)
