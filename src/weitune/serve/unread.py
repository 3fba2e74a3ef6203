"""Requests that are answered before their body has been read: the connection is closed after the answer.

Nobody would read what follows on it. But if it were closed while the client still sends, the system would throw the
answer away too. So for a while the rest of the body is read and forgotten.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from weitune.serve.asgi import Receive, Scope, Send, header
from weitune.serve.tasks import within

_SECONDS = 5
"""How long a client may go on sending after its answer."""


def closing(scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return channels of the request that close the connection if its body has not been read when the answer begins."""
    lengths = header(scope, b"content-length")
    unread = any(length != "0" for length in lengths) or bool(header(scope, b"transfer-encoding"))

    async def received() -> Any:
        nonlocal unread
        message = await receive()
        unread = unread and message["type"] == "http.request" and bool(message.get("more_body"))
        return message

    async def forget() -> None:
        while unread:
            await received()

    async def sent(message: Any) -> None:
        if unread and message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        elif unread and not message.get("more_body"):
            await send({**message, "more_body": True})
            with suppress(asyncio.TimeoutError):
                await within(_SECONDS, forget())
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return received, sent
