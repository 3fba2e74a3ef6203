"""The requests of Open WebUI, as its documentation has them for servers of this protocol ("Starting with
OpenAI-Compatible Servers": models, chats with their parameters, tools; and its tasks: titles, tags), are answered in
the form that it reads. The program itself does not run here.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.serve.asgi import Client, Response
from tests.serve.test_tools import CALL, TOOL, Writing, calls_in, framing_of, written
from weitune.export.llama_models import LlamaModel
from weitune.serve.admission import Admission
from weitune.serve.answers.answering import Answering
from weitune.serve.app import App
from weitune.serve.guard import Guard
from weitune.serve.requests.request import Limits

MODEL = "captain"
USER = {"role": "user", "content": "When is high tide?"}
HEADERS = {
    "content-type": "application/json",
    "x-openwebui-user-name": "Ada%20L.",
    "x-openwebui-user-id": "7",
    "x-openwebui-user-role": "user",
    "x-openwebui-chat-id": "3f0e",
}
TASK = {"model": MODEL, "stream": False, "max_completion_tokens": 1000}
ANSWER = [{"content": text, "tokens": [1]} for text in ("At", " noon", ".")]


def send(
    path: str, body: Any = None, *, engine: Writing | None = None, key: str | None = None, sent_key: str = ""
) -> Response:
    """Send one request as Open WebUI does: with ``Bearer`` and the key, which is empty if none was given."""
    framing = framing_of("qwen2.5")
    models = {MODEL: LlamaModel(MODEL, framing, frozenset(framing.stop_tokens), None, 0)}
    answering = Answering(engine or Writing(ANSWER), Admission(2, 2))  # type: ignore[arg-type]
    app = App(models, answering, Guard(key=key), Limits())
    headers = {**HEADERS, "authorization": f"Bearer {sent_key}"}
    return asyncio.run(Client(app).send("GET" if body is None else "POST", path, body, headers))


def test_a_connection_is_verified_by_its_models() -> None:
    for key in (None, "secret"):
        listed = send("/v1/models", key=key, sent_key=key or "")
        assert listed.status == 200
        assert [model["id"] for model in listed.json["data"]] == [MODEL]
        assert {model["object"] for model in listed.json["data"]} == {"model"}
    refused = send("/v1/models", key="secret", sent_key="another")
    assert refused.status == 401
    assert refused.json["error"]["message"]


@pytest.mark.parametrize(
    "parameters",
    [{}, {"stream_options": {"include_usage": True}}, {"temperature": 0.7, "top_p": 0.9, "seed": 3, "max_tokens": 50},
     {"max_completion_tokens": 50, "stop": ["\n\n"], "logit_bias": {"5": -100}, "top_k": 40, "min_p": 0.1},
     {"frequency_penalty": 0.5, "presence_penalty": 0.5, "user": "7"}],
)  # fmt: skip
def test_a_chat_is_streamed(parameters: dict[str, Any]) -> None:
    asked = [{"role": "system", "content": "You are a captain."}, USER, {"role": "assistant", "content": "At noon."}]
    body = {"stream": True, "model": MODEL, "messages": [*asked, {"role": "user", "content": "And tomorrow?"}]}
    response = send("/v1/chat/completions", {**body, **parameters})
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = response.events
    assert done == "[DONE]"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "At noon."
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(usage) == ("stream_options" in parameters)


@pytest.mark.parametrize("task", ["title", "tags", "follow-ups", "queries"])
def test_tasks_are_answered_whole(task: str) -> None:
    ask = {"role": "user", "content": f"### Task:\nGenerate {task} as JSON.\n<chat_history>\n…\n</chat_history>"}
    response = send("/v1/chat/completions", {**TASK, "messages": [ask]})
    assert response.json["choices"][0]["message"]["content"] == "At noon."


def test_parts_of_content_are_text() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "When"}, {"type": "text", "text": " is high tide?"}]}
    engines = [Writing(ANSWER), Writing(ANSWER)]
    for engine, message in zip(engines, (USER, parts), strict=True):
        assert send("/v1/chat/completions", {**TASK, "messages": [message]}, engine=engine).status == 200
    assert engines[0].bodies[0]["prompt"] == engines[1].bodies[0]["prompt"]


def test_native_tools_are_called_and_their_results_read() -> None:
    body = {"stream": True, "model": MODEL, "messages": [USER], "tools": [TOOL]}
    *chunks, _ = send("/v1/chat/completions", body, engine=Writing(written("qwen2.5", "", CALL))).events
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert calls_in({"tool_calls": calls}) == [CALL[:2]]
    assert [(call["index"], bool(call["id"])) for call in calls] == [(0, True)]
    assert choices[-1]["finish_reason"] == "tool_calls"
    said = {"role": "assistant", "content": "", "tool_calls": [
        {"index": 0, "id": calls[0]["id"], "type": "function", "function": calls[0]["function"]}]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": json.dumps({"high": "12:00"})}
    again = send("/v1/chat/completions", {**body, "messages": [USER, said, result]})
    assert again.status == 200, again.body
    assert again.events[-1] == "[DONE]"


def test_what_is_not_here_is_refused_in_words() -> None:
    for path in ("/v1/embeddings", "/v1/audio/speech", "/v1/images/generations"):
        refused = send(path, {"model": MODEL, "input": "x"})
        assert refused.status == 404
        assert path in refused.json["error"]["message"]
