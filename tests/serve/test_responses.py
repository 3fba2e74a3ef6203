"""``/v1/responses``: what items become, the order of events, and what is refused."""

from __future__ import annotations

import json
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
        assert chat_body(body)[0]["messages"]
    except ApiError as error:
        assert error.status == 400  # noqa: PT017
    assert ask(ScriptedEngine(), "qwen2.5", body, "/v1/responses").status in {200, 400}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [({"max_output_tokens": 10**6}, "max_output_tokens", "max_output_tokens must be at most 2048"),
     ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens must be an integer"),
     ({"reasoning": {"effort": 5}}, "reasoning.effort", "reasoning.effort must be a short string"),
     ({"text": {"format": {"type": "xml"}}}, "text.format", ""),
     ({"text": {"format": {"type": "json_object"}}, "tools": [TOOL]}, "text.format", "text.format and tools cannot"),
     ({"instructions": 5}, "instructions", "instructions must be a string"),
     ({"input": "word " * 5000}, "input", "the prompt has"),
     ({"tools": [{"type": "function", "name": "a", "parameters": 5}]}, "tools[0]", "tools[0] must be a function"),
     ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "input[0].content must be a string"),
     ({"input": [{"type": "reasoning", "content": [{"text": "Hm."}]}, {"role": "assistant", "content": 5}]},
      "input[1].content", "input[1].content must be"),
     ({"input": [{"type": "function_call", "name": "a", "call_id": "b", "arguments": "x"}], "instructions": "Hi."},
      "input[0].arguments", "input[0].arguments must be a JSON object"),
     ({"input": [{"type": "function_call_output", "call_id": "b", "output": "x"}]}, "input[0].call_id",
      "input[0] must name"),
     ({"input": [{"type": "function_call_output", "call_id": "b", "output": 5}]}, "input[0].output",
      "input[0].output must be"),
     ({"model": "messages"}, "model", "there is no model 'messages'"),
     ({"input": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]}, "input[1].role", "")],
)  # fmt: skip
def test_refusals_name_the_fields_of_this_protocol(fields: dict[str, Any], param: str, message: str) -> None:
    error = responded(ScriptedEngine(), **fields).json["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_an_answer_that_was_cut_while_it_reasoned_can_be_sent_back() -> None:
    chunks = written("qwen3", "At noon.", reasoning="The moon is full.")
    cut = [chunk for chunk in chunks if chunk["content"] != "</think>"][: len(chunks) // 2]
    engine = Writing(cut)
    engine.last = {**engine.last, "stop_type": "limit"}
    answer = responded(engine, "qwen3").json
    assert [item["type"] for item in answer["output"]] == ["reasoning"]
    assert answer["status"] == "incomplete"
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == answer["usage"]["output_tokens"] > 0
    again = [{"role": "user", "content": "When?"}, *answer["output"], {"role": "user", "content": "Go on."}]
    assert responded(engine, "qwen3", input=again).status == 200
    [thought] = answer["output"][0]["content"]
    turns = (Turn("user", "When?"), Turn("assistant", "", reasoning=thought["text"]), Turn("user", "Go on."))
    assert engine.bodies[-1]["prompt"] == framing_of("qwen3").prompt(Conversation(turns))


def all_at_once(chunks: list[dict[str, Any]]) -> ScriptedEngine:
    """Return an engine that writes ``chunks`` with the likelihood of each token, as many tokens as characters."""
    framing = framing_of("qwen3")
    controls, tokens = set(framing.control_tokens.values()), []
    for chunk in chunks:
        control = chunk["tokens"][0] in controls
        tokens += chunk["tokens"] if control else framing._backend.encode(chunk["content"]).ids
    told = [{"id": token, "token": framing.decode([token]), "bytes": [], "logprob": -1.0, "top_logprobs": []}
            for token in tokens]  # fmt: skip
    engine = ScriptedEngine((), context_tokens=4096)
    engine.last = {"content": "".join(chunk["content"] for chunk in chunks), "tokens": tokens, "stop": True,
                   "stop_type": "eos", "completion_probabilities": told}  # fmt: skip
    return engine


@pytest.mark.parametrize("fields", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
def test_likelihoods_are_those_of_the_message(fields: dict[str, Any]) -> None:
    engine = all_at_once(written("qwen3", "Let me look.", CALL, reasoning="The moon."))
    _, message, _ = responded(engine, "qwen3", tools=[TOOL], **fields).json["output"]
    told = message["content"][0]["logprobs"]
    assert "".join(token["token"] for token in told) == message["content"][0]["text"] == "Let me look."
    assert engine.bodies[0]["n_probs"] == fields.get("top_logprobs", 1)
    events = responded(engine, "qwen3", tools=[TOOL], stream=True, **fields).body.decode().split("\n\n")
    values = [json.loads(event.partition("data: ")[2]) for event in events if event]
    for kind in ("response.output_text.delta", "response.output_text.done"):
        assert [value["logprobs"] for value in values if value["type"] == kind] == [told]
    assert values[-1]["response"]["output"][1]["content"][0]["logprobs"] == told
    chat = {"model": "captain", "messages": [{"role": "user", "content": "When?"}], "logprobs": True}
    content = ask(engine, "qwen3", chat).json["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content][: len(told)] == [token["token"] for token in told]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_reasoning_are_counted(stream: bool) -> None:
    chunks = written("qwen3", "At noon.", reasoning="The moon.")
    closing = next(i for i, chunk in enumerate(chunks, 1) if chunk["content"] == "</think>")
    ways: tuple[tuple[ScriptedEngine, dict[str, Any]], ...] = (
        (Writing(chunks), {}), (all_at_once(chunks), {"top_logprobs": 1}),
    )  # fmt: skip
    for engine, fields in ways:
        response = responded(engine, "qwen3", stream=stream, **fields)
        body = response.body.decode().split("\n\n")
        reply = json.loads(body[-2].partition("data: ")[2])["response"] if stream else response.json
        counted = reply["usage"]["output_tokens_details"]["reasoning_tokens"]
        assert closing <= counted <= closing + 2 if not fields else closing <= counted
        assert counted < reply["usage"]["output_tokens"]
    assert responded(ScriptedEngine(), "qwen3").json["usage"]["output_tokens_details"]["reasoning_tokens"] == 0
