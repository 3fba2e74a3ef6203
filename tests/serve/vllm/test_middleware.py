"""The middleware that asks for the key, and tells vLLM's chat template which model a request names."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from weitune.serve.vllm import middleware as middleware_module


def middleware(folder: Path, app: Any, body_bytes: int = 4096, base: str | None = "base") -> Any:
    """Return the middleware as vLLM has it: imported from a copy outside weitune, with its settings beside it."""
    path = folder / "weitune_vllm.py"
    shutil.copyfile(middleware_module.__file__, path)
    path.with_suffix(".json").write_text(json.dumps({"base": base, "body_bytes": body_bytes}))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelName(app)


class Answer:
    """An application that reads a request, keeps it, and answers 200."""

    def __init__(self) -> None:
        self.body: bytes | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.last: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = list(scope.get("headers", []))
        self.body = b""
        if scope["type"] == "http":
            more = True
            while more:
                message = await receive()
                self.body += message["body"]
                more = message["more_body"]
            self.last = await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})


def ask(
    app: Any,
    pieces: Sequence[bytes],
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    kind: str = "http",
    keys: Sequence[str] = (),
) -> list[Any]:
    """Send a request whose body comes in ``pieces``, then go away; return what was sent back."""
    scope = {"type": kind, "method": method, "path": path, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(sum(map(len, pieces))).encode()),
        *((b"authorization", key.encode()) for key in keys),
    ]}  # fmt: skip
    coming = [
        *({"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)} for i, piece in enumerate(pieces)),
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def changed(folder: Path, body: Any) -> Any:
    """Return the body that vLLM gets for ``body``."""
    inner = Answer()
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert ask(middleware(folder, inner), [text[:7], text[7:]])[0]["status"] == 200
    assert inner.body is not None
    assert (b"content-length", str(len(inner.body)).encode()) in inner.headers
    assert inner.last == {"type": "http.disconnect"}  # vLLM learns that the client went away
    return json.loads(inner.body) if not isinstance(body, bytes) else inner.body


MESSAGES = [{"role": "user", "content": "你是谁？ 😀"}]


@pytest.mark.parametrize(
    ("request_", "arguments"),
    [
        ({"model": "a", "messages": MESSAGES}, {"weitune_model": "a"}),
        ({"messages": MESSAGES}, {"weitune_model": "base"}),
        ({"model": None, "messages": MESSAGES}, {"weitune_model": "base"}),
        ({"model": "a", "input": "Who are you?"}, {"weitune_model": "a"}),
        ({"model": "a", "messages": MESSAGES, "chat_template_kwargs": None}, {"weitune_model": "a"}),
        (
            {"model": "a", "messages": MESSAGES, "chat_template_kwargs": {"x": 1, "weitune_model": "b"}},
            {"x": 1, "weitune_model": "a"},
        ),
    ],
)
def test_the_name_is_added_and_no_client_can_choose_another(
    request_: dict[str, Any], arguments: dict[str, Any], tmp_path: Path
) -> None:
    assert changed(tmp_path, request_) == {**request_, "chat_template_kwargs": arguments}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a", "prompt": "Once"}', b'{"messages": [', b"[1, 2]", b'"messages"', b"\xff\xfe", b"",
        b"[" * 2000, b'{"messages": [], "chat_template_kwargs": 3}',
    ],
)  # fmt: skip
def test_what_has_no_messages_or_is_wrong_reaches_vllm_as_it_is(body: bytes, tmp_path: Path) -> None:
    assert changed(tmp_path, body) == body


def test_a_long_body_is_refused_while_it_arrives(tmp_path: Path) -> None:
    inner = Answer()
    sent = ask(middleware(tmp_path, inner, body_bytes=100), [b"x" * 60] * 9)
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["error"]["message"] == "a body may have 100 bytes"
    assert inner.body is None


def test_a_client_that_goes_away_is_forgotten_and_other_messages_pass(tmp_path: Path) -> None:
    inner = Answer()
    app = middleware(tmp_path, inner)
    assert ask(app, []) == []
    assert inner.body is None
    assert ask(app, [b""], method="GET")[0]["status"] == 200
    asyncio.run(app({"type": "lifespan"}, None, None))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations", "/pause", "/health", "/metrics"])
def test_every_path_needs_the_key(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    for keys in ([], ["Bearer wrong"], ["sesame"], ["Bearer "], ["Bearer sesame", "Bearer sesame"]):
        for method in ("GET", "POST"):
            inner = Answer()
            start, end = ask(middleware(tmp_path, inner), [b"{}"], method=method, path=path, keys=keys)
            assert start["status"] == 401
            assert json.loads(end["body"])["error"]["type"] == "authentication_error"
            assert inner.body is None
    for method, keys in (("GET", ["Bearer sesame"]), ("POST", ["Bearer sesame"]), ("OPTIONS", [])):
        assert ask(middleware(tmp_path, Answer()), [b"{}"], method=method, path=path, keys=keys)[0]["status"] == 200


def test_a_websocket_needs_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    inner = Answer()
    assert ask(middleware(tmp_path, inner), [], kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert inner.body is None
    ask(middleware(tmp_path, inner), [], kind="websocket", keys=["Bearer sesame"])
    assert inner.body == b""


def test_where_all_models_are_framed_alike_no_name_is_added(tmp_path: Path) -> None:
    inner = Answer()
    body = json.dumps({"model": "a", "messages": MESSAGES}).encode()
    assert ask(middleware(tmp_path, inner, base=None), [body])[0]["status"] == 200
    assert inner.body == body
