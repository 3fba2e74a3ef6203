"""Answers kept to JSON schemas and forced calls, by llama.cpp and a tiny model that would say anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.data.frame import families
from tests.export.runs import save_run
from tests.json_schemas import SCHEMAS, fits, is_refused
from tests.limits import HANG_SECONDS
from tests.serve.live import Live, live, llama_models, silent
from weitune.serve.local import Capacity
from weitune.serve.requests.request import Limits

pytest.importorskip("xllamacpp")
pytest.importorskip("llguidance")
openai = pytest.importorskip("openai")

ASK = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    run = save_run(tmp_path_factory.mktemp("json") / "run", system=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        template = Path(str(run.recipe.model)) / "chat_template.jinja"
        template.write_text(families.QWEN25, encoding="utf-8")
        with (
            llama_models({"run": run}, "F32", silent) as models,
            live(models, capacity=Capacity(slots=2, threads=1), limits=Limits(max_tokens=1000)) as server,
        ):
            yield server


@pytest.fixture(scope="module")
def client(server: Live) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=HANG_SECONDS)


def answered(client: Any, schema: Any, **options: Any) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    options = {"max_tokens": 150, "temperature": 1.0, "seed": 5, **options}
    return client.chat.completions.create(model="run", messages=ASK, response_format=form, **options).choices[0]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS)
def test_every_answer_fits_or_its_schema_is_refused(client: Any, schema: Any) -> None:
    try:
        choice = answered(client, schema)
    except openai.BadRequestError as error:
        assert "JSON schema" in str(error)  # noqa: PT017
        assert is_refused(schema)
    else:
        if choice.finish_reason == "stop":
            assert fits(json.loads(choice.message.content), schema)


def test_an_object_whole_and_streamed(client: Any) -> None:
    options = {"model": "run", "messages": ASK, "max_tokens": 400, "response_format": {"type": "json_object"}}
    choice = client.chat.completions.create(**options).choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    chunks = client.chat.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stop_string_ends_json_anywhere(client: Any, logprobs: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": {"port": "Brest"}}}}
    options = {"model": "run", "messages": ASK, "response_format": form, "stop": ["re"], "logprobs": logprobs}
    choice = client.chat.completions.create(**options).choices[0]
    assert (choice.message.content.replace(" ", ""), choice.finish_reason) == ('{"port":"B', "stop")
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].finish_reason == "stop"


PARAMETERS = {"type": "object", "properties": {"port": {"enum": ["Brest", "Cork"]}}, "required": ["port"],
              "additionalProperties": False}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "x", "parameters": PARAMETERS}}
    for name in ("a", "tides")
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "tides"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_forced(client: Any, choice: Any, stream: bool) -> None:
    options = {"model": "run", "messages": ASK, "tools": TOOLS, "tool_choice": choice, "max_tokens": 200}
    if stream:
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
        [call] = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
        finish = chunks[-1].finish_reason
    else:
        answer = client.chat.completions.create(**options).choices[0]
        [call], finish = answer.message.tool_calls, answer.finish_reason
    assert call.function.name in ({"a", "tides"} if choice == "required" else {"tides"})
    assert json.loads(call.function.arguments)["port"] in {"Brest", "Cork"}
    assert finish == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_vanish_during_a_forced_call_free_their_slots(client: Any, server: Live, stream: bool) -> None:
    long = {"type": "object", "required": ["hours"], "properties": {
        "hours": {"type": "array", "items": {"type": "integer"}, "minItems": 800}}}  # fmt: skip
    tool = {"type": "function", "function": {"name": "tides", "description": "x", "parameters": long}}
    body = {"model": "run", "messages": ASK, "tools": [tool], "tool_choice": "required", "stream": stream}
    server.abandon("/v1/chat/completions", {**body, "max_tokens": 500}, clients=4, running=2)
    options = {"model": "run", "messages": ASK, "tools": TOOLS, "tool_choice": "required", "max_tokens": 200}
    assert client.chat.completions.create(**options).choices[0].message.tool_calls


def test_what_cannot_be_forced_is_refused(client: Any) -> None:
    broken = [{"type": "function", "function": {"name": "a", "description": "x", "parameters": {"not": {}}}}]
    with pytest.raises(openai.BadRequestError, match="JSON schema cannot be kept to"):
        client.chat.completions.create(model="run", messages=ASK, tools=broken, tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="cannot be in one request"):
        client.chat.completions.create(model="run", messages=ASK, tools=TOOLS, response_format={"type": "json_object"})


FLAT = [{"type": "function", **tool["function"]} for tool in TOOLS]


def test_responses_of_the_official_client(client: Any) -> None:
    chat = client.chat.completions.create(model="run", messages=ASK, max_tokens=20)
    options = {"model": "run", "input": ASK[0]["content"], "max_output_tokens": 20}
    response = client.responses.create(**options)
    assert response.output_text == chat.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (
        chat.usage.prompt_tokens, chat.usage.completion_tokens,
    )  # fmt: skip
    events = list(client.responses.create(**options, stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    assert events[-1].response.output_text == response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_json_in_responses(client: Any, stream: bool) -> None:
    options = {"model": "run", "input": "When?", "tools": FLAT, "tool_choice": "required", "max_output_tokens": 200}
    if stream:
        with client.responses.stream(**options) as events:
            for _ in events:
                pass
            response = events.get_final_response()
    else:
        response = client.responses.create(**options)
    [call] = response.output
    assert (call.type, response.status) == ("function_call", "completed")
    assert json.loads(call.arguments)["port"] in {"Brest", "Cork"}
    told = [{"role": "user", "content": "When?"}, call, {"type": "function_call_output", "call_id": call.call_id,
                                                         "output": "noon"}]  # fmt: skip
    again = client.responses.create(model="run", input=told, tools=FLAT, max_output_tokens=5)
    messages = [{"role": "user", "content": "When?"},
                {"role": "assistant", "tool_calls": [{"id": call.call_id, "type": "function", "function": {
                    "name": call.name, "arguments": call.arguments}}]},
                {"role": "tool", "tool_call_id": call.call_id, "content": "noon"}]  # fmt: skip
    chat = client.chat.completions.create(model="run", messages=messages, tools=TOOLS, max_tokens=5)
    assert again.usage.input_tokens == chat.usage.prompt_tokens
    assert again.output_text == chat.choices[0].message.content
    form = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["a", "b"]}, "strict": True}}
    answer = client.responses.create(model="run", input="Which?", text=form)
    assert json.loads(answer.output_text) in {"a", "b"}
