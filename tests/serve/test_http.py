"""How the server ends: after the open requests, or at once at the second signal."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from tests.limits import HANG_SECONDS
from weitune.serve.http import http_server, listen


@pytest.mark.parametrize("signals", [1, 2])
def test_the_first_signal_waits_for_open_requests_and_the_second_does_not(signals: int) -> None:
    entered, may_end, told = asyncio.Event(), asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        gone = asyncio.ensure_future(_gone(receive))
        done, _ = await asyncio.wait({gone, asyncio.ensure_future(may_end.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if gone in done:
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def go() -> bytes:
        listening = listen("127.0.0.1", 0)
        server = http_server(app)  # type: ignore[arg-type]
        server.stopping = told.append
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await asyncio.wait_for(entered.wait(), HANG_SECONDS)
        for _ in range(signals):
            server.handle_exit(signal.SIGTERM, None)
        if signals == 1:
            await asyncio.sleep(0.3)
            assert not serving.done()
            may_end.set()
        await asyncio.wait_for(serving, HANG_SECONDS)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""

    began = time.monotonic()
    answer = asyncio.run(go())
    assert time.monotonic() - began < HANG_SECONDS
    assert answer.endswith(b"ok") == (signals == 1)
    assert told == [1]


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
