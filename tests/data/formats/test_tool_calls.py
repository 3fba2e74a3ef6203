"""Function calls and tools: every spelling gives the same call, and no part of one is silently lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.data.read.reading_rows import (
    ANSWERED,
    ASKED,
    assistant,
    fault,
    faults,
    messages,
    read,
    tool,
    turns,
    unread,
    user,
)
from weitune.data.conversation import ToolCall, Turn

ARGUMENTS = {"port": "Brest"}
CALL = ToolCall("tides", ARGUMENTS)
NAMED = ToolCall("tides", ARGUMENTS, "c1")
CALLED = Turn("assistant", "", tool_calls=(CALL,))
SCHEMA = {"name": "tides", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}


def calling(*calls: Any, **fields: Any) -> dict[str, Any]:
    """Return a row in which the assistant makes ``calls``."""
    return messages(user(), assistant(None, tool_calls=list(calls), **fields), tool(), assistant())


def calls_of(*calls: Any) -> tuple[ToolCall, ...]:
    return read(calling(*calls)).turns[1].tool_calls


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input"])
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("under_function", [False, True])
def test_arguments_under_any_of_their_names(key: str, as_text: bool, under_function: bool) -> None:
    function = {"name": "tides", key: json.dumps(ARGUMENTS) if as_text else ARGUMENTS}
    call = {"type": "function", "id": "c1", "function": function} if under_function else {**function, "id": "c1"}
    assert calls_of(call) == (NAMED,)
    assert calls_of(json.dumps(call)) == (NAMED,)
    if under_function:
        assert calls_of({**call, "function": json.dumps(function)}) == (NAMED,)


def test_arguments_beside_the_function() -> None:
    assert calls_of({"function": {"name": "tides"}, "arguments": ARGUMENTS}) == (CALL,)


@pytest.mark.parametrize("arguments", ["null", None, "", " \n", {}, "{}"])
def test_calls_without_arguments(arguments: Any) -> None:
    assert calls_of({"function": {"name": "tides", "arguments": arguments}}) == (ToolCall("tides", {}),)
    assert calls_of({"name": "tides", "args": arguments}) == (ToolCall("tides", {}),)
    assert calls_of({"name": "tides"}) == (ToolCall("tides", {}),)


@pytest.mark.parametrize("arguments", [[1], 3, 0, False, [], "[1]", "3", '"x"', "Brest", "{", "{'port': 'Brest'}"])
def test_arguments_must_be_an_object(arguments: Any) -> None:
    problem = fault(calling({"function": {"name": "tides", "parameters": arguments}}))
    assert problem.field == "messages[1].tool_calls[0].function.parameters"
    assert problem.kind in ("wrong type", "not valid JSON")


def test_arguments_twice() -> None:
    same = {"name": "tides", "arguments": ARGUMENTS, "args": json.dumps(ARGUMENTS), "input": None}
    assert calls_of(same) == (CALL,)
    problem = fault(calling({**same, "input": {"port": "Dover"}}))
    assert problem.kind == "arguments twice"
    assert "`arguments`" in problem.found
    assert "`input` with an object {'port': 'Dover'}" in problem.found
    assert fault(calling({"function": {"name": "f", "arguments": {}}, "input": {"x": 1}})).kind == "arguments twice"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"a": NaN}', "NaN is not a JSON value"),
        ('{"a": 1e999}', "out of range"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
    ],
)
def test_json_in_a_string_loses_nothing(arguments: str, reason: str) -> None:
    problem = fault(calling({"name": "tides", "arguments": arguments}))
    assert (problem.kind, problem.field) == ("not valid JSON", "messages[1].tool_calls[0].arguments")
    assert reason in problem.found


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("arguments", "kind", "found"),
    [
        ({"a": float("inf")}, "not a JSON value", "the number inf"),
        ({"a": [b"x"]}, "not a JSON value", "bytes"),
        (nested(120), "not a JSON value", "more than 100 levels"),
        (json.dumps(nested(120)), "not a JSON value", "more than 100 levels"),
        ({"a": ["\ud83d"]}, "undecodable text", "half of a surrogate pair"),
        ({"\ud83d": 1}, "undecodable text", "half of a surrogate pair"),
        ('{"a": "\\ud83d"}', "undecodable text", "half of a surrogate pair"),
    ],
)
def test_values_that_cannot_be_written(arguments: Any, kind: str, found: str) -> None:
    problem = fault(calling({"name": "tides", "arguments": arguments}))
    assert (problem.kind, problem.field) == (kind, "messages[1].tool_calls[0].arguments")
    assert found in problem.found


def test_arguments_as_deep_as_allowed() -> None:
    assert calls_of({"name": "tides", "arguments": nested(60)}) == (ToolCall("tides", nested(60)),)


@pytest.mark.parametrize(
    "call",
    [
        {"name": "tides", "params": ARGUMENTS},
        {"function": {"name": "tides", "kwargs": ARGUMENTS}},
        {"function": {"name": "tides"}, "tool_input": json.dumps(ARGUMENTS)},
        {"name": "tides", "port": "Brest"},
    ],
)
def test_arguments_under_an_unknown_name(call: Any) -> None:
    problem = fault(calling(call))
    assert problem.kind == "missing field"
    assert problem.field.endswith("arguments")
    assert "`port`" in problem.found or "Brest" in problem.found


@pytest.mark.parametrize("name", ["", " ", None])
def test_empty_names_of_functions(name: Any) -> None:
    problem = fault(calling({"function": {"name": name, "arguments": {}}}))
    assert (problem.kind, problem.field) == ("empty name", "messages[1].tool_calls[0].function.name")


def test_calls_under_additional_kwargs_of_langchain() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "tides", "arguments": json.dumps(ARGUMENTS)}}
    kwargs: dict[str, Any]
    for kwargs in ({"tool_calls": [call]}, {"function_call": {"name": "tides", "arguments": json.dumps(ARGUMENTS)}}):
        [_, answer, *_] = turns(user(), assistant("", additional_kwargs=kwargs), tool(), assistant())
        assert answer in (CALLED, CALLED._replace(tool_calls=(NAMED,)))
    both = assistant(
        "", tool_calls=[{"name": "tides", "args": ARGUMENTS, "id": "c1"}], additional_kwargs={"tool_calls": [call]}
    )
    assert turns(user(), both)[1].tool_calls == (NAMED,)
    refused = assistant(additional_kwargs={"refusal": None})
    assert unread(messages(user(additional_kwargs={}), refused)) == {
        "messages[].additional_kwargs": 1,
        "messages[].additional_kwargs.refusal": 1,
    }


def test_a_surrogate_in_a_name() -> None:
    problem = fault(calling({"name": "ti\ud83ddes"}))
    assert (problem.kind, problem.field) == ("undecodable text", "messages[1].tool_calls[0].name")


def test_unread_keys_of_calls_are_counted() -> None:
    call = {"id": "c1", "index": 0, "type": "function", "function": {"name": "tides", "strict": True}}
    bare = {"name": "tides", "args": {}, "type": "tool_call", "state": "done"}
    assert unread(calling(call, call, bare)) == {
        "messages[].tool_calls[].index": 2,
        "messages[].tool_calls[].function.strict": 2,
        "messages[].tool_calls[].state": 1,
    }


def test_calls_as_json_in_a_string() -> None:
    call = {"id": "c1", "function": {"name": "tides", "arguments": json.dumps(ARGUMENTS)}}
    assert turns(user(), assistant("", tool_calls=json.dumps([call])), tool()) == (
        ASKED,
        Turn("assistant", "", tool_calls=(NAMED,)),
        Turn("tool", "noon"),
    )
    for empty in ("", "[]", "null", None, []):
        assert turns(user(), assistant(tool_calls=empty)) == (ASKED, ANSWERED)
    assert fault(messages(user(), assistant(tool_calls="tides()"))).field == "messages[1].tool_calls"


def test_function_call_of_openai() -> None:
    called = assistant(None, function_call={"name": "tides", "arguments": json.dumps(ARGUMENTS)})
    row = messages(user(), called, {"role": "function", "name": "tides", "content": "noon"}, assistant())
    conversation = read({**row, "functions": [SCHEMA]})
    assert conversation.turns == (ASKED, CALLED, Turn("tool", "noon", name="tides"), ANSWERED)
    assert conversation.tools == (TOOL,)
    assert unread({**row, "functions": [SCHEMA]}) == {}
    assert turns(user(), {**called, "content": ""})[1] == CALLED
    assert turns(user(), {k: v for k, v in called.items() if k != "content"})[1] == CALLED
    assert turns(user(), assistant(function_call=None)) == (ASKED, ANSWERED)


def test_function_call_beside_tool_calls() -> None:
    both = {"tool_calls": [{"id": "c1", "function": {"name": "tides"}}], "function_call": {"name": "tides"}}
    assert turns(user(), assistant(None, **both))[1].tool_calls == (ToolCall("tides", {}, "c1"),)
    both["function_call"] = {"name": "winds"}
    assert fault(messages(user(), assistant(None, **both))).kind == "calls twice"
    assert read({**messages(user(), assistant()), "tools": [TOOL], "functions": [SCHEMA]}).tools == (TOOL,)
    assert fault({**messages(user(), assistant()), "tools": [TOOL], "functions": [{"name": "f"}]}).kind == "tools twice"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        (user(tool_calls=[{"name": "tides"}]), "messages[0].tool_calls"),
        (user(function_call={"name": "tides"}), "messages[0].function_call"),
        (tool(tool_calls=[{"name": "tides"}]), "messages[0].tool_calls"),
        (user(reasoning_content="r"), "messages[0].reasoning_content"),
    ],
)
def test_fields_of_the_assistant_in_other_messages(said: dict[str, Any], field: str) -> None:
    assert [(problem.kind, problem.field) for problem in faults(messages(said, assistant()))] == [("wrong role", field)]


def test_empty_fields_of_the_assistant_in_other_messages() -> None:
    padded = {"tool_calls": None, "function_call": None, "thinking": None, "tool_call_id": None}
    assert turns(user(**padded), assistant(**padded)) == (ASKED, ANSWERED)
    assert turns(user(tool_calls=[], reasoning=""), assistant()) == (ASKED, ANSWERED)
    assert unread(messages(user(**padded), assistant(**padded))) == {}
    assert unread(messages(user(tool_call_id="c1"), assistant())) == {"messages[].tool_call_id": 1}


@pytest.mark.parametrize(
    "tools",
    [
        [SCHEMA],
        [TOOL],
        json.dumps([SCHEMA]),
        [json.dumps(SCHEMA)],
        [json.dumps(TOOL)],
        [{"type": "function", "function": json.dumps(SCHEMA)}],
        [{"type": "function", **SCHEMA}],
        [{**SCHEMA, "parameters": json.dumps(SCHEMA["parameters"])}],
        [{"name": "tides", "description": "d", "input_schema": SCHEMA["parameters"]}],
        [{"name": "tides", "description": "d", "inputSchema": SCHEMA["parameters"]}],
    ],
)
def test_tools_in_every_spelling(tools: Any) -> None:
    assert read(messages(user(), assistant(), tools=tools)).tools == (TOOL,)


def test_a_tool_without_parameters() -> None:
    tools = read(messages(user(), assistant(), tools=[{"name": "noon"}])).tools
    assert tools == ({"type": "function", "function": {"name": "noon"}},)


@pytest.mark.parametrize("tools", [None, "", "[]", "null", []])
def test_no_tools(tools: Any) -> None:
    assert read(messages(user(), assistant(), tools=tools)).tools == ()


def test_unread_keys_of_tools_are_counted() -> None:
    tools = [{**TOOL, "strict": True, "cache_control": {}}, TOOL]
    assert unread(messages(user(), assistant(), tools=tools)) == {"tools[].strict": 1, "tools[].cache_control": 1}


@pytest.mark.parametrize(
    ("tools", "kind", "field"),
    [
        ("[{", "not valid JSON", "tools"),
        ("tides", "not valid JSON", "tools"),
        ({"name": "tides"}, "wrong type", "tools"),
        (3, "wrong type", "tools"),
        (["{"], "not valid JSON", "tools[0]"),
        ([{"function": "tides"}], "not valid JSON", "tools[0].function"),
        ([3], "wrong type", "tools[0]"),
        ([{"type": "function"}], "wrong type", "tools[0]"),
        ([{"name": "tides", "parameters": "x"}], "not valid JSON", "tools[0].parameters"),
        ([{"name": "tides", "parameters": "[]"}], "wrong type", "tools[0].parameters"),
        ([{"name": "tides", "default": float("nan")}], "not a JSON value", "tools"),
        ([{"name": "tides", "parameters": nested(150)}], "not a JSON value", "tools"),
    ],
)
def test_wrong_tools(tools: Any, kind: str, field: str) -> None:
    problem = fault(messages(user(), assistant(), tools=tools))
    assert (problem.kind, problem.field) == (kind, field)


@pytest.mark.parametrize("role", ["tool_call", "function_call"])
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_messages_of_calls_only(role: str, keys: tuple[str, str]) -> None:
    def say(speaker: str, text: Any) -> dict[str, Any]:
        return dict(zip(keys, (speaker, text), strict=True))

    tides, winds = {"name": "tides", "arguments": ARGUMENTS}, {"name": "winds", "arguments": {}}
    both = Turn("assistant", "", tool_calls=(CALL, ToolCall("winds", {})))
    answers = [say("tool_response", "noon"), say("tool_response", "calm"), say("assistant", "a")]
    heard = (Turn("tool", "noon"), Turn("tool", "calm"), ANSWERED)
    asked = say("user", "q")
    apart = [asked, say(role, json.dumps(tides)), say(role, json.dumps(winds)), *answers]
    assert read({"messages": apart}).turns == (ASKED, both, *heard)
    together = [asked, say(role, json.dumps([tides, winds])), *answers]
    assert read({"conversations": together}).turns == (ASKED, both, *heard)
    objects = [asked, say(role, tides), say(role, winds), *answers]
    assert read({"messages": objects}).turns == (ASKED, both, *heard)
    spoken = [asked, say("assistant", "<think>\nr\n</think>\n\nI look."), say(role, json.dumps(tides)), *answers]
    said = Turn("assistant", "I look.", reasoning="r", tool_calls=(CALL,))
    assert read({"messages": spoken}).turns == (ASKED, said, *heard)
    thought = [asked, say(role, "<think>\nr\n</think>\n\n" + json.dumps(tides)), *answers]
    assert read({"messages": thought}).turns == (ASKED, CALLED._replace(reasoning="r"), *heard)


@pytest.mark.parametrize("text", ["{}", "[]", "null", "", "tides()", "3", "[3]"])
def test_a_call_message_without_a_call(text: str) -> None:
    (problem, *_) = faults(messages(user(), {"role": "tool_call", "content": text}))
    assert problem.field.startswith("messages[1].content")


def test_an_answer_and_its_calls_have_one_weight() -> None:
    call = {"role": "tool_call", "content": '{"name": "tides"}'}
    said = turns(user(), assistant("x", loss=False), {**call, "loss": False})
    assert said[1] == Turn("assistant", "x", 0.0, tool_calls=(ToolCall("tides", {}),))
    problem = fault(messages(user(), assistant("x", loss=False), call))
    assert (problem.kind, problem.field) == ("two weights", "messages[2]")


def test_items_of_openais_responses() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "tides", "arguments": '{"port": "Brest"}'}
    said = turns(
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
    )
    assert said == (
        ASKED,
        Turn("assistant", "", tool_calls=(NAMED,)),
        Turn("tool", "noon", tool_call_id="c1"),
        ANSWERED,
    )
    assert unread(messages(user(), {**call, "status": "completed"})) == {"messages[].status": 1}
    unknown, *_ = faults(messages(user(), {"type": "reasoning", "summary": []}, assistant()))
    assert (unknown.kind, unknown.field) == ("unknown role", "messages[1].type")
