"""A response to a client: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from weitune.serve.asgi import ClientGone, Headers, Send
from weitune.serve.errors import ApiError
from weitune.serve.tasks import within

_SEND_SECONDS = 30
"""A client that reads nothing for this long counts as disconnected."""


class Response:
    """One response. Every method raises ClientGone if the client has disconnected or does not read."""

    def __init__(self, send: Send, seconds: float = _SEND_SECONDS, headers: Headers = ()) -> None:
        self._send, self._headers, self._seconds = send, headers, seconds
        self.begun = False
        """Whether the status has been sent, so that an error can no longer have its own."""

    async def json(self, status: int, value: Any) -> None:
        await self._whole(status, _json(value), "application/json")

    async def text(self, status: int, text: str, kind: str) -> None:
        await self._whole(status, text.encode(), kind)

    async def _whole(self, status: int, body: bytes, kind: str) -> None:
        await self._begin(status, kind, [(b"content-length", str(len(body)).encode())])
        await self._put({"type": "http.response.body", "body": body, "more_body": False})

    async def nothing(self, headers: Headers) -> None:
        self.begun = True
        await self._put({"type": "http.response.start", "status": 204, "headers": [*self._headers, *headers]})
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def error(self, error: ApiError) -> None:
        if self.begun:
            await self.event(error.to_json())
            await self._put({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            self._headers = (*self._headers, *error.headers)
            await self.json(error.status, error.to_json())

    async def events(self, values: Iterable[Mapping[str, Any]]) -> None:
        for value in values:
            await self.event(value, value.get("type"))

    async def event(self, value: Any, name: str | None = None) -> None:
        if not self.begun:
            await self._begin(200, "text/event-stream; charset=utf-8", [(b"cache-control", b"no-store")])
        named = b"" if name is None else f"event: {name}\n".encode()
        body = named + b"data: " + _json(value) + b"\n\n"
        await self._put({"type": "http.response.body", "body": body, "more_body": True})

    async def end_events(self, *, done: bool = True) -> None:
        body = b"data: [DONE]\n\n" if done else b""
        await self._put({"type": "http.response.body", "body": body, "more_body": False})

    async def _begin(self, status: int, kind: str, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        headers = [
            (b"content-type", kind.encode()),
            (b"x-content-type-options", b"nosniff"),
            *([(b"retry-after", b"1")] if status == 429 else []),
            *([(b"www-authenticate", b"Bearer")] if status == 401 else []),
            *self._headers,
            *headers,
        ]
        await self._put({"type": "http.response.start", "status": status, "headers": headers})

    async def _put(self, message: MutableMapping[str, Any]) -> None:
        try:
            await within(self._seconds, self._send(message))
        except (asyncio.TimeoutError, OSError):
            raise ClientGone from None


def _json(value: Any) -> bytes:
    """Return ``value`` as JSON, with "?" for halves of surrogate pairs, which clients and models may write escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
