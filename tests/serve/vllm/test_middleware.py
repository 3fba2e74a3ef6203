"""The middleware that asks for the key, and tells vLLM's chat template which model a request names."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from weitune.serve.vllm import middleware as middleware_module
from weitune.serve.vllm import place as place_module


def middleware(folder: Path, app: Any, **settings: Any) -> Any:
    """Return the middleware as vLLM has it: imported from a copy outside weitune, with its settings beside it."""
    package = folder / "weitune_vllm"
    package.mkdir(exist_ok=True)
    for module in (middleware_module, place_module):
        shutil.copy(str(module.__file__), package)
    given = {"base": "base", "body_bytes": 4096, "bound_to": "127.0.0.1", "hosts": [], "origins": [], **settings}
    (package / "middleware.json").write_text(json.dumps(given))
    for name in [name for name in sys.modules if name.startswith("weitune_vllm")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("weitune_vllm.middleware").Entrance(app)
    finally:
        sys.path.remove(str(folder))


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
    host: str = "localhost:8000",
    origins: Sequence[str] = (),
) -> list[Any]:
    """Send a request whose body comes in ``pieces``, then go away; return what was sent back."""
    scope = {"type": kind, "method": method, "path": path, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(sum(map(len, pieces))).encode()),
        (b"host", host.encode()), *((b"origin", origin.encode()) for origin in origins),
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


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("key", [None, "sesame"])
def test_pages_of_other_sites_are_refused_with_and_without_a_key(
    kind: str, key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their own name that points here (DNS rebinding), or directly."""
    keys = []
    if key is not None:
        monkeypatch.setenv("VLLM_API_KEY", key)
        keys = [f"Bearer {key}"]
    settings = {"hosts": ["gpu.example"], "origins": ["https://chat.example"]}
    for host, origins, status in (
        ("evil.example:8000", [], 403),
        ("localhost:8000", ["https://evil.example"], 403),
        ("localhost:8000", ["null"], 403),
        ("localhost:8000", ["https://chat.example"], 200),
        ("localhost:8000", ["http://localhost:8000"], 200),
        ("gpu.example", [], 200),
        ("127.0.0.1:8000", [], 200),
    ):
        inner = Answer()
        sent = ask(middleware(tmp_path, inner, **settings), [b"{}"], kind=kind, keys=keys, host=host, origins=origins)
        assert (inner.body is None) == (status == 403)
        if kind == "http":
            assert sent[0]["status"] == status
        else:
            assert sent == ([{"type": "websocket.close", "code": 1008}] if status == 403 else [])
    preflight = ask(middleware(tmp_path, Answer()), [], method="OPTIONS", origins=["https://evil.example"])
    assert preflight[0]["status"] == 403


def test_a_server_that_others_reach_is_asked_for_by_any_address(tmp_path: Path) -> None:
    for host, status in (("192.168.1.7:8000", 200), ("mybox:8000", 200), ("evil.example", 403)):
        app = middleware(tmp_path, Answer(), bound_to="MyBox")
        assert ask(app, [b"{}"], host=host)[0]["status"] == status
