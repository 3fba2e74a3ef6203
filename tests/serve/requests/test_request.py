"""Requests: what is read, what is refused, and that nothing a client sends is a fault of ours."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.asgi import ASK, ScriptedEngine, make_app
from weitune.data.conversation import Turn
from weitune.serve.errors import ApiError
from weitune.serve.requests.request import ChatRequest, Limits, parse_request
from weitune.serve.requests.responses import chat_body

OFFERS = make_app(ScriptedEngine())._models
LIMITS = Limits(max_tokens=100, choices=2)


def parse(**fields: Any) -> ChatRequest:
    return parse_request({**ASK, **fields}, OFFERS, LIMITS)


def test_defaults_are_those_of_chat() -> None:
    request = parse()
    assert request.sampling.greedy
    assert request.sampling.max_new_tokens == 100
    assert (request.choices, request.stream, request.stop) == (1, False, ())
    assert request.conversation.system == "你是甄嬛。"


def test_contents_may_come_in_parts_and_roles_under_new_names() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert parse(messages=messages).conversation.turns == (Turn("system", "Be brief."), Turn("user", "ab"))


def test_names_and_reasoning_are_read_as_in_training() -> None:
    messages = [
        {"role": "system", "content": "Be brief.", "name": "harbour"},
        {"role": "user", "content": "When?", "name": "Ada\ud83d"},
        {
            "role": "assistant",
            "content": "At noon.",
            "name": "captain",
            "reasoning_content": "",
            "reasoning": "The moon.",
        },
        {"role": "user", "content": "Why?", "name": ""},
        {"role": "assistant", "content": "The moon.", "thinking": "It is full."},
        {"role": "user", "content": "I see."},
    ]
    system, asked, answered, again, told, _ = parse(messages=messages).conversation.turns
    assert [turn.name for turn in (system, asked, answered, again)] == ["harbour", "Ada?", "captain", None]
    assert (answered.reasoning, told.reasoning) == ("The moon.", "It is full.")


def test_what_the_official_client_sends_back_of_an_answer_is_let_pass() -> None:
    chat = pytest.importorskip("openai.types.chat")
    message = chat.ChatCompletionMessage(role="assistant", content="At noon.", annotations=[])
    output = pytest.importorskip("openai.types.responses").ResponseOutputMessage.model_validate(
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "At noon.", "annotations": []}]}
    )  # fmt: skip
    user = {"role": "user", "content": "When?"}
    added = {"provider_specific_fields": {"refusal": None}, "cache_control": {"type": "ephemeral"}, "prefix": False}
    dumped = {**message.model_dump(), **added, "annotations": [{"type": "url_citation"}]}
    expected = parse(messages=[user, {"role": "assistant", "content": "At noon."}, user]).conversation
    assert parse(messages=[user, dumped, user]).conversation == expected
    body, _ = chat_body({"model": "zhenhuan", "input": [user, output.model_dump(), user]})
    assert parse_request(body, OFFERS, LIMITS).conversation == expected


@pytest.mark.parametrize(
    ("role", "key", "value"),
    [("user", "nmae", "Ada"), ("user", "reasoning", "Hm."), ("assistant", "prefix", True), ("system", "weight", 0),
     ("user", "tool_call_id", "x"), ("assistant", "refusal", "No."), ("user", "name", 5), ("assistant", "thinking", 5),
     ("assistant", "function_call", {"name": "f", "arguments": "{}"})],
)  # fmt: skip
def test_other_keys_of_a_message_are_refused_by_name(role: str, key: str, value: Any) -> None:
    messages = [{"role": role, "content": "x", key: value}, {"role": "user", "content": "x"}]
    with pytest.raises(ApiError, match=rf"messages\[0\]\.{key}") as error:
        parse(messages=messages)
    assert (error.value.status, error.value.param) == (400, f"messages[0].{key}")


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert parse(messages=[{"role": "user", "content": "a\ud83d"}]).conversation.turns[-1].content == "a?"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5), ("messages", "x"), ("messages", []), ("messages", [5]), ("messages", [{"role": "user"}]),
        ("messages", [{"role": "tool", "content": "x"}]), ("messages", [{"role": [], "content": "x"}]),
        ("messages", [{"role": "assistant", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]),
        ("temperature", -1), ("temperature", "1"), ("temperature", True), ("temperature", float("nan")), ("top_p", 0),
        ("top_p", 1.1), ("top_k", -1), ("top_k", 1.5), ("n", 0), ("n", 3), ("max_tokens", 0), ("max_tokens", 101),
        ("max_completion_tokens", 10**30), ("seed", 2**63), ("seed", "7"), ("stop", ""), ("stop", [1]),
        ("stop", ["x"] * 17), ("stop", "x" * 257), ("stream", "yes"), ("stream_options", 1), ("logit_bias", {"x": 1}),
        ("logit_bias", {"5": 101}), ("logit_bias", []), ("presence_penalty", 3), ("tools", [{"type": "function"}]),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": 1}}]),
        ("response_format", {"type": "xml"}), ("response_format", 5),
        ("response_format", {"type": "json_schema"}), ("logprobs", 1),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": 1}}), ("temprature", 1),
        ("top_logprobs", 5),
        ("tools", {}), ("tools", [{"type": "function", "function": {"name": "a b"}}]), ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "tides"}}), ("min_p", 2), ("parallel_tool_calls", 1),
        ("chat_template_kwargs", [1]), ("chat_template_kwargs", {"x": {}}), ("top_logprobs", 21),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(ApiError) as error:
        parse(**{field: value})
    assert error.value.status == 400
    assert (error.value.param or error.value.message).startswith(field)


@pytest.mark.parametrize(
    "fields",
    [{"tools": []}, {"tool_choice": "none"}, {"response_format": {"type": "text"}}, {"logprobs": False}, {"user": "me"},
     {"temperature": None}, {"metadata": {"a": "b"}}, {"seed": -5}, {"n": None}, {"top_logprobs": 0}],
)  # fmt: skip
def test_what_changes_nothing_is_let_pass(fields: dict[str, Any]) -> None:
    assert parse(**fields).conversation == parse().conversation


def test_an_unknown_model_names_those_there_are() -> None:
    with pytest.raises(ApiError, match="there are: base, zhenhuan") as error:
        parse(model="gpt-4")
    assert (error.value.status, error.value.code) == (404, "model_not_found")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "stream", "stream_options", "stop", "n", "max_tokens", "temperature", "top_p", "top_k",
     "seed", "logit_bias", "tools", "tool_choice", "response_format", "user", "frequency_penalty", "logprobs",
     "top_logprobs", "min_p", "chat_template_kwargs", "parallel_tool_calls", "x"]
)  # fmt: skip


@given(body=JSON | st.dictionaries(FIELDS, JSON, max_size=6).map(lambda found: {**ASK, **found}))
def test_whatever_is_sent_gives_a_request_or_a_refusal(body: Any) -> None:
    try:
        request = parse_request(body, OFFERS, LIMITS)
    except ApiError as error:
        assert 400 <= error.status < 500  # noqa: PT017
    else:
        assert request.sampling.max_new_tokens <= LIMITS.max_tokens


def test_what_the_assistant_thought_is_reasoning_as_in_training() -> None:
    thought = "<think>\nThe moon is full.\n</think>\n\nAt noon."
    messages = [{"role": role, "content": thought} for role in ("user", "assistant", "user")]
    asked, answered, again = parse(messages=messages).conversation.turns[1:]
    assert (answered.reasoning, answered.content) == ("The moon is full.", "At noon.")
    assert {asked.content, again.content} == {thought}
    assert {asked.reasoning, again.reasoning} == {None}
