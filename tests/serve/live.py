"""A server of tiny runs in this process, with llama.cpp behind it, and ways to reach it that no good client takes."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from tests.export.runs import save_adapter, save_run, silent
from tests.limits import HANG_SECONDS
from weitune import Run
from weitune.export.llama_models import LlamaModels, llama_models
from weitune.serve.guard import Guard
from weitune.serve.http import Server, listen
from weitune.serve.local import Capacity, serve
from weitune.serve.requests.request import Limits


@dataclass(frozen=True)
class Live:
    """A running server."""

    url: str

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return status and body of one raw request."""
        connection = http.client.HTTPConnection(*self.address, timeout=HANG_SECONDS)
        try:
            payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, payload, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Return a bare connection."""
        return socket.create_connection(self.address, timeout=HANG_SECONDS)

    def metric(self, name: str) -> float:
        """Return a figure of /metrics; 0 if it is not there yet."""
        lines = self.request("GET", "/metrics")[1].decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def abandon(self, path: str, body: dict[str, Any], clients: int, running: int) -> None:
        """Let ``clients`` send ``body`` and vanish once ``running`` answers are generated; every slot must be freed."""
        before = self.metric('weitune_requests_total{status="499"}')
        payload = json.dumps(body).encode()
        header = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n\r\n"
        connections = [self.connect() for _ in range(clients)]
        for connection in connections:
            connection.sendall(header.encode() + payload)
        self.wait_for("weitune_running", running)
        for connection in connections:
            connection.close()
        self.wait_for("weitune_running", 0)
        self.wait_for('weitune_requests_total{status="499"}', before + clients)
        assert self.metric("weitune_waiting") == 0

    def wait_for(self, name: str, value: float, seconds: float = HANG_SECONDS) -> float:
        """Wait until a metric has ``value``; return how long that took."""
        began = time.monotonic()
        while self.metric(name) != value:
            assert time.monotonic() - began < seconds, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.01)
        return time.monotonic() - began


def two_runs(folder: Path) -> dict[str, Run]:
    """Write two runs of one tiny base that answer differently."""
    first = save_run(folder / "first", system="你是甄嬛。")
    second = save_run(folder / "second", system=None, model=first.recipe.model)
    save_adapter(second.path / "adapter", Path(first.recipe.model), seed=7)
    return {"first": first, "second": second}


@contextmanager
def live(
    models: LlamaModels, *, guard: Guard | None = None, capacity: Capacity | None = None, limits: Limits | None = None
) -> Iterator[Live]:
    """Serve ``models`` at a free port while the block runs."""
    started: SimpleQueue[tuple[str, Server]] = SimpleQueue()

    def work() -> None:
        with listen("127.0.0.1", 0) as listening:
            serve(models, listening, capacity or Capacity(threads=1), guard or Guard(), limits or Limits(),
                  started=lambda url, server: started.put((url, server)))  # fmt: skip

    thread = threading.Thread(target=work, name="serve")
    thread.start()
    url, server = started.get(timeout=HANG_SECONDS)
    try:
        yield Live(url)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


__all__ = ["Live", "live", "llama_models", "silent", "two_runs"]
