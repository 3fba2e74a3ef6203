"""A server for the benchmarks: ``weitune serve`` in a process of its own, and a client in a few lines."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RESULTS = Path(__file__).parent / "results"
_SECONDS = 600


@dataclass(frozen=True)
class Service:
    """A running server."""

    pid: int
    host: str
    port: int

    def connection(self) -> http.client.HTTPConnection:
        """Return a new connection."""
        return http.client.HTTPConnection(self.host, self.port, timeout=_SECONDS)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Return the status and the body of one request; ``body`` is JSON, or bytes as they are."""
        connection = self.connection()
        try:
            payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, payload)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def chat(self, **body: Any) -> dict[str, Any]:
        """Return a reply."""
        status, reply = self.request("POST", "/v1/chat/completions", body)
        if status != http.client.OK:
            raise RuntimeError(reply.decode())
        found: dict[str, Any] = json.loads(reply)
        return found

    def metric(self, name: str) -> float:
        """Return a figure of /metrics."""
        for line in self.request("GET", "/metrics")[1].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def resident_bytes(self) -> int:
        """Return how much memory the server holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def service(run: Path, *options: str) -> Iterator[Service]:
    """Serve ``run`` while the block runs."""
    command = [sys.executable, "-m", "weitune", "serve", str(run), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        said = ""
        while "listening at" not in (line := process.stderr.readline()):
            said += line
            if not line:
                raise RuntimeError(said)
        address = urlsplit(line.split("listening at ")[1].split()[0])
        found = Service(process.pid, str(address.hostname), int(address.port or 0))
        found.request("GET", "/health")  # answers once the model is loaded
        yield found
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()


def wait_for(condition: Any, seconds: float) -> float:
    """Wait until ``condition()`` holds and return how long that took; give up after ``seconds``."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds} seconds")
        time.sleep(0.005)
    return time.monotonic() - began


def keep(name: str, result: dict[str, Any]) -> None:
    """Print a result and keep it in ``bench/results``."""
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
