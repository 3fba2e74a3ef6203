"""Middleware for vLLM that tells the chat template which model a request names.

vLLM renders the requests to all models with one chat template and does not tell it the model. This class puts the name
into the request's ``chat_template_kwargs``, where the template of :mod:`weitune.serve.vllm.template` looks for it. vLLM
is started with ``--middleware`` and a copy of this file, so it imports nothing but the standard library.

A request's body is held until it is complete, at most ``body_bytes`` of it; a longer one is answered with 413.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

VARIABLE = "weitune_model"
"""The variable of the chat template that holds the model's name."""
SETTINGS = ".json"
"""Suffix of the settings file: ``base`` is the model of requests that name none, ``body_bytes`` the size limit."""


class ModelName:
    """An ASGI application that wraps vLLM's."""

    def __init__(self, app: Application) -> None:
        settings = json.loads(Path(__file__).with_suffix(SETTINGS).read_text(encoding="utf-8"))
        self._app = app
        self._base: str = settings["base"]
        self._body_bytes: int = settings["body_bytes"]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on to vLLM; if it has messages, add the model's name."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._body_bytes:
                await _refuse(send, self._body_bytes)
                return
        changed = self._named(bytes(body))
        await self._app({**scope, "headers": _headers(scope, len(changed))}, _replay(changed, receive), send)

    def _named(self, body: bytes) -> bytes:
        """Return ``body`` with its model's name among the template's arguments; unchanged if it has no messages."""
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            return body  # vLLM reports what is wrong with it
        if not isinstance(request, dict) or not {"messages", "input"} & request.keys():
            return body
        arguments = request.get("chat_template_kwargs")
        if arguments is not None and not isinstance(arguments, dict):
            return body
        request["chat_template_kwargs"] = {**(arguments or {}), VARIABLE: request.get("model") or self._base}
        return json.dumps(request).encode()


def _headers(scope: Message, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in scope["headers"] if name not in {b"content-length", b"transfer-encoding"}]
    return [*kept, (b"content-length", str(length).encode())]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a channel that yields ``body``, then the later messages, such as the client's disconnect."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed


async def _refuse(send: Send, limit_bytes: int) -> None:
    error = {"message": f"a body may have {limit_bytes} bytes", "type": "invalid_request_error", "code": 413}
    text = json.dumps({"error": error}).encode()
    length = str(len(text)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})
