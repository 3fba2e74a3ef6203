"""The network: uvicorn, with a limit on how long a client may take to send a request's header."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from weitune.errors import InputError
from weitune.serve.app import App

_HEADER_SECONDS = 10
_IDLE_SECONDS = 15
_STOPPING_SECONDS = 60
"""How long open requests may take after the first signal."""
_HEADER_BYTES = 16 << 10


class HeaderTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a timeout for a request's header, for which uvicorn itself waits for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        elif self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(_HEADER_SECONDS, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn's server. The first Ctrl-C or SIGTERM ends it after the open requests or a minute, the second at once."""

    stopping: Callable[[int], None] = staticmethod(lambda requests: None)
    """Called when the server begins to end, with the number of open requests."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stopping(len(self.server_state.tasks))
        aborting = asyncio.ensure_future(self._abort_if_forced())
        try:
            await super().shutdown(sockets)
        finally:
            aborting.cancel()

    async def _abort_if_forced(self) -> None:
        """Wait for the second signal, and drop all connections: asyncio's servers would wait for them."""
        while not self.force_exit:
            await asyncio.sleep(0.1)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # uvicorn's own method heeds only a second SIGINT
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End the server on a signal; uvicorn's own method would raise the signal again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 takes a free one. Raises InputError if it is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise InputError("serve.http.cannot_listen", host=host, port=port, reason=error.strerror or error) from None


def url_of(listening: socket.socket) -> str:
    """Return the address at which ``listening`` is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def http_server(app: App) -> Server:
    """Return a server of ``app``; run it by ``await server.serve(sockets=[listen(…)])``."""
    config = uvicorn.Config(
        app,
        http=HeaderTimeoutProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_STOPPING_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    return Server(config)
