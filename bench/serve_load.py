"""Clients that mean no good, on loopback and within bounds: do slots come back, is nonsense refused, does memory stay?

python -m bench.serve_load RUN [--clients 200] [--requests 400]

vanish       CLIENTS ask for long answers and close their connections in the middle: seconds until nobody holds a slot;
             for chats, chats with tools (if the template writes calls), completions and responses, streamed or not
malformed    REQUESTS bodies that are no JSON, no object, or a request with a wrong field: all 4xx
oversized    bodies above the limit, by their header and by their length: all 413
half         connections that never end their header, while /health goes on answering
memory       what the server holds before, and after all that
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.serving import Service, keep, service, wait_for
from weitune import Run
from weitune.export.source.export_source import open_export_source

ASK = {"messages": [{"role": "user", "content": "你是谁？"}], "max_tokens": 2000}
TOOL = {"type": "function", "function": {"name": "tides", "description": "Tells the tides.", "parameters": {}}}
BODY_LIMIT = 1 << 20


def long_requests(stops: Sequence[int], *, tools: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return path and body of requests for long answers, by kind."""
    endless = {"logit_bias": {str(token): -100 for token in stops}}
    chat = ("/v1/chat/completions", {**ASK, **endless})
    story = "Tell me a long story of the sea, with all that happens on every day of a year, and leave nothing out."
    return {
        "chat": chat,
        **({"tools": (chat[0], {**chat[1], "tools": [TOOL]})} if tools else {}),
        "completions": ("/v1/completions", {"prompt": "你是谁？", "max_tokens": 2000, **endless}),
        "responses": ("/v1/responses", {"input": story, "max_output_tokens": 2000}),  # it knows no logit_bias
    }


def vanish(server: Service, path: str, body: dict[str, Any], clients: int) -> dict[str, Any]:
    """Close every connection while answers are being generated and others wait for their turn."""
    payload = json.dumps(body).encode()
    header = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n\r\n"
    before = server.metric('weitune_requests_total{status="499"}')
    connections = []
    for _ in range(clients):
        connections.append(socket.create_connection((server.host, server.port), timeout=60))
        connections[-1].sendall(header.encode() + payload)
    present = wait_for(lambda: _present(server) == clients, 120)
    generated = wait_for(lambda: server.metric("weitune_running") > 0, 60)
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    try:
        freed = wait_for(lambda: _present(server) == 0, 120)
    except TimeoutError as error:
        left = {name: server.metric(f"weitune_{name}") for name in ("running", "waiting")}
        raise TimeoutError(f"{path}, stream {body['stream']}: {error}; {left}") from None
    noticed = server.metric('weitune_requests_total{status="499"}') - before
    began = time.monotonic()
    server.chat(**{**ASK, "model": body["model"], "max_tokens": 2})
    return {
        "clients": clients, "all_present_seconds": present + generated, "slots_free_seconds": freed,
        "counted_as_gone": noticed, "next_answer_seconds": time.monotonic() - began,
    }  # fmt: skip


def _present(server: Service) -> float:
    return server.metric("weitune_running") + server.metric("weitune_waiting")


def malformed(server: Service, model: str, requests: int) -> dict[str, int]:
    """Send bodies that are wrong in different ways, eight at a time."""
    wrong: list[bytes] = [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"model": NaN}', b'{"a":' * 5000,
        json.dumps({**ASK, "model": "none"}).encode(), json.dumps({**ASK, "model": model, "n": 10**9}).encode(),
        json.dumps({**ASK, "model": model, "max_tokens": -1}).encode(),
        json.dumps({"model": model, "messages": [{"role": "user", "content": "房子" * 100_000}]}).encode(),
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        bodies = [wrong[i % len(wrong)] for i in range(requests)]
        replies = pool.map(lambda body: server.request("POST", "/v1/chat/completions", body)[0], bodies)
        return {str(status): count for status, count in sorted(Counter(replies).items())}


def oversized(server: Service, requests: int) -> dict[str, int]:
    """Announce too much, or send it without saying so."""
    found: Counter[str] = Counter()
    for i in range(requests):
        connection = server.connection()
        with suppress(BrokenPipeError, ConnectionResetError, http.client.HTTPException):
            if i % 2:
                connection.putrequest("POST", "/v1/chat/completions")
                connection.putheader("Content-Length", str(1 << 40))
                connection.endheaders()
            else:
                chunks = (b"x" * 65536 for _ in range(2 * BODY_LIMIT // 65536))
                connection.request("POST", "/v1/chat/completions", chunks, encode_chunked=True,
                                   headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        try:
            found[str(connection.getresponse().status)] += 1
        except (OSError, http.client.HTTPException):
            found["closed"] += 1
        connection.close()
    return dict(found)


def half(server: Service, clients: int) -> dict[str, Any]:
    """Begin headers and say no more; tell how soon /health answers meanwhile, and when all are let go."""
    connections = []
    for _ in range(clients):
        connections.append(socket.create_connection((server.host, server.port), timeout=60))
        connections[-1].sendall(b"GET /health HTTP/1.1\r\nHost: local")
    began = time.monotonic()
    status, _ = server.request("GET", "/health")
    answered = time.monotonic() - began
    for connection in connections:
        with suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
        connection.close()
    return {"status": status, "health_seconds": answered, "all_closed_seconds": time.monotonic() - began}


def main() -> None:
    """Put one server under load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    limits = ("--slots", "4", "--queue", str(options.clients), "--max-body", str(BODY_LIMIT))
    model = options.run.resolve().name
    stops = open_export_source(Run(options.run)).stop_tokens
    with service(options.run, *limits) as server:
        server.chat(**{**ASK, "model": model, "max_tokens": 8})
        result: dict[str, Any] = {"resident_bytes_before": server.resident_bytes()}
        tools = server.request(
            "POST", "/v1/chat/completions", {**ASK, "model": model, "max_tokens": 1, "tools": [TOOL]}
        )
        for kind, (path, body) in long_requests(stops, tools=tools[0] == http.client.OK).items():
            for way, stream in (("streamed", True), ("whole", False)):
                asked = {**body, "model": model, "stream": stream}
                result[f"vanish_{kind}_{way}"] = vanish(server, path, asked, options.clients)
        result["resident_bytes_after_vanishing"] = server.resident_bytes()
        for part in ("first", "second"):  # what the first round needs once, the second does not need again
            result[f"malformed_{part}"] = malformed(server, model, options.requests)
            result[f"oversized_{part}"] = oversized(server, options.requests // 4)
            result[f"resident_bytes_after_{part}"] = server.resident_bytes()
        result["half_headers"] = half(server, options.clients)
        result["resident_bytes_after"] = server.resident_bytes()
        result["answers_still"] = bool(server.chat(**{**ASK, "model": model, "max_tokens": 4})["choices"])
    keep("serve_load", result)


if __name__ == "__main__":
    main()
