"""Middleware for vLLM: what a request must show, and which model it names, for the chat template.

As in weitune's own server, pages of other sites are refused (:mod:`.place`), whether there is a key or not.

vLLM wants its key below ``/v1`` alone, though other paths generate answers and pause the server too. This class wants
the key of ``VLLM_API_KEY``, if that is set, on every path but for a browser's preflight, which never carries one.

vLLM renders the requests to all models with one chat template and does not tell it the model. This class puts the name
into the request's ``chat_template_kwargs``, where the template of :mod:`weitune.serve.vllm.template` looks for it. vLLM
is started with ``--middleware`` and a copy of this file and of :mod:`.place`, so they import nothing but the standard
library.

A request's body is held until it is complete, at most ``body_bytes`` of it; a longer one is answered with 413.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from .place import Place  # a relative import: the copies lie in another package

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

VARIABLE = "weitune_model"
"""The variable of the chat template that holds the model's name."""
SETTINGS = ".json"
"""Suffix of the settings file: ``base`` is the model of requests that name none (null: the template does not ask for a
model), ``body_bytes`` the size limit, and the others are those of a :class:`.Place`."""


class Entrance:
    """An ASGI application that wraps vLLM's."""

    def __init__(self, app: Application) -> None:
        settings = json.loads(Path(__file__).with_suffix(SETTINGS).read_text(encoding="utf-8"))
        self._app = app
        self._base: str | None = settings["base"]
        self._body_bytes: int = settings["body_bytes"]
        self._place = Place(settings["bound_to"], settings["hosts"], settings["origins"])
        self._key = os.environ.get("VLLM_API_KEY")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request that is in order on to vLLM; if it has messages, add the model's name."""
        if scope["type"] in {"http", "websocket"} and (refusal := self._refusal(scope)):
            await _refuse_entry(scope, send, *refusal)
            return
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
                await _refuse(send, 413, f"a body may have {self._body_bytes} bytes")
                return
        changed = self._named(bytes(body))
        await self._app({**scope, "headers": _headers(scope, len(changed))}, _replay(changed, receive), send)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Return status and reason if a request or a websocket may not enter. A browser's preflight needs no key."""
        hosts, origins = (
            [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
            for wanted in (b"host", b"origin")
        )
        if place := self._place.refusal(hosts, origins):
            return 403, place.replace("_", " ")
        if not self._key or scope.get("method") == "OPTIONS":
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        shown = len(given) == 1 and hmac.compare_digest(given[0], f"Bearer {self._key}".encode())
        return None if shown else (401, "the API key is missing or wrong")

    def _named(self, body: bytes) -> bytes:
        """Return ``body`` with its model's name among the template's arguments; unchanged if it has no messages."""
        if self._base is None:
            return body
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


async def _refuse_entry(scope: Message, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await _refuse(send, status, reason, [(b"www-authenticate", b"Bearer")] if status == 401 else [])


async def _refuse(send: Send, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    kind = {401: "authentication_error", 403: "permission_error"}.get(status, "invalid_request_error")
    text = json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()
    length = str(len(text)).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": text})
