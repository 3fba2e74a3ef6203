"""``/v1/responses``: what items become, the order of events, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.asgi import Response, ScriptedEngine
from tests.serve.requests.test_request import JSON
from tests.serve.test_tools import CALL, PARAMETERS, Writing, ask, framing_of, written
from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.serve.errors import ApiError
from weitune.serve.requests.responses import chat_body

TOOL = {"type": "function", "name": "tides", "description": "The tides.", "parameters": PARAMETERS}


def responded(engine: ScriptedEngine, name: str = "qwen2.5", **fields: Any) -> Response:
    return ask(engine, name, {"model": "captain", "input": "When?", **fields}, "/v1/responses")


def test_reasoning_content_and_calls_are_items() -> None:
    chunks = written("qwen3", "Let me look.", CALL, reasoning="The moon.")
    whole = responded(Writing(chunks), "qwen3", tools=[TOOL]).json
    reasoning, message, call = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "The moon."}]
    assert message["content"][0]["text"] == "Let me look."
    assert (call["name"], call["arguments"]) == ("tides", '{"port": "Brest"}')
    assert whole["status"] == "completed"
    events = responded(Writing(chunks), "qwen3", tools=[TOOL], stream=True)
    told = [line for line in events.body.decode().splitlines() if line.startswith("event: ")]
    kinds = [line.removeprefix("event: response.") for line in told]
    assert kinds[:2] == ["created", "in_progress"]
    assert kinds[-1] == "completed"
    steps = [kind for kind in kinds if not kind.endswith(".delta")]
    item = ["output_item.added", "content_part.added", "{}.done", "content_part.done", "output_item.done"]
    expected = [step.format(text) for text in ("reasoning_text", "output_text") for step in item]
    assert steps[2:-4] == expected
    assert steps[-4:-1] == ["output_item.added", "function_call_arguments.done", "output_item.done"]


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    engine = ScriptedEngine(())
    assert responded(engine).json["output"][0]["content"][0]["text"] == ""
    assert "response.output_text.done" in responded(engine, stream=True).body.decode()


def test_items_are_framed_as_messages() -> None:
    engine = ScriptedEngine()
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "When?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me look."}]},
        {"type": "function_call", "call_id": "abcdefghi", "name": "tides", "arguments": '{"port": "Brest"}'},
        {"type": "function_call_output", "call_id": "abcdefghi", "output": "noon"},
    ]
    assert responded(engine, "qwen3", input=items, instructions="Be brief.", tools=[TOOL]).status == 200
    called = ToolCall("tides", {"port": "Brest"}, "abcdefghi")
    turns = (Turn("system", "Be brief."), Turn("user", "When?"),
             Turn("assistant", "Let me look.", reasoning="Hm.", tool_calls=(called,)),
             Turn("tool", "noon", tool_call_id="abcdefghi"))  # fmt: skip
    tool = {"type": "function", "function": {key: value for key, value in TOOL.items() if key != "type"}}
    assert engine.bodies[0]["prompt"] == framing_of("qwen3").prompt(Conversation(turns, (tool,)))


@pytest.mark.parametrize(
    "fields",
    [{"input": None}, {"input": []}, {"input": [5]}, {"input": [{"type": "item_reference", "id": "x"}]},
     {"previous_response_id": "resp_1"}, {"background": True}, {"truncation": "auto"}, {"conversation": "x"},
     {"tools": [{"type": "web_search"}]}, {"text": {"format": {"type": "xml"}}}, {"text": 5}, {"instructions": 5},
     {"tool_choice": {"type": "function"}}, {"max_output_tokens": 0}, {"temprature": 1},
     {"reasoning": "high"}, {"reasoning": {"efort": "high"}}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(fields: dict[str, Any]) -> None:
    assert responded(ScriptedEngine(), **fields).status == 400


@given(body=st.fixed_dictionaries({"model": st.just("captain"), "input": JSON}, optional={
    "tools": JSON, "text": JSON, "tool_choice": JSON, "instructions": JSON, "stream": JSON}))  # fmt: skip
def test_whatever_is_sent_gives_a_reply_or_a_refusal(body: Any) -> None:
    try:
        assert chat_body(body)["messages"]
    except ApiError as error:
        assert error.status == 400  # noqa: PT017
    assert ask(ScriptedEngine(), "qwen2.5", body, "/v1/responses").status in {200, 400}
