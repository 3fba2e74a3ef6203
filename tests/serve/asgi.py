"""A client without a network: one request to an ASGI application, and an engine that is only a script."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.limits import HANG_SECONDS
from tests.tiny import tiny_tokenizer
from weitune.data.frame.choose import framing_for
from weitune.export.llama_models import LlamaModel
from weitune.generate.sampling import Sampling
from weitune.recipe.schema import Tokens
from weitune.serve.admission import Admission
from weitune.serve.answers.answering import Answering
from weitune.serve.app import App
from weitune.serve.guard import Guard
from weitune.serve.requests.request import Limits


@dataclass
class Response:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.body.decode().split("\n\n") if line]
        return [json.loads(line) if line != "[DONE]" else line for line in lines]


class Client:
    """Sends requests to ``app``; ``gone`` makes the client of the request under way disappear."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.gone = asyncio.Event()

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        host: str = "localhost",
    ) -> Response:
        payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"host": host, **(headers or {})}
        scope = {
            "type": "http", "method": method, "path": path,
            "headers": [(key.encode(), value.encode("latin-1")) for key, value in given.items()],
        }  # fmt: skip
        response = Response()
        parts = [payload[i : i + 1000] for i in range(0, max(len(payload), 1), 1000)]

        async def receive() -> dict[str, Any]:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert not response.status
                response.status = message["status"]
                response.headers = {key.decode(): value.decode() for key, value in message["headers"]}
            else:
                response.body += message["body"]

        await self.app(scope, receive, send)
        return response


class ScriptedCompletion:
    """Gives ``chunks``, ``pause`` seconds apart, until it is closed."""

    def __init__(self, engine: ScriptedEngine, chunks: list[dict[str, Any]]) -> None:
        self.engine, self.chunks = engine, chunks
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.engine.lock:
            self.engine.running += 1
            self.engine.most = max(self.engine.most, self.engine.running)
        try:
            for chunk in self.chunks:
                if self.closed.wait(self.engine.pause):
                    return
                yield chunk
        finally:
            with self.engine.lock:
                self.engine.running -= 1

    def close(self) -> None:
        self.closed.set()


class ScriptedEngine:
    """Stands for llama.cpp: answers every request with the same words."""

    def __init__(
        self, words: tuple[str, ...] = ("Hel", "lo", "."), *, context_tokens: int = 512, pause: float = 0
    ) -> None:
        self.words, self.context_tokens, self.pause = words, context_tokens, pause
        self.adapters = 2
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.bodies: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {"content": "", "tokens": [], "stop": True, "stop_type": "eos"}

    def body(self, prompt: Any, sampling: Sampling, adapter: int | None = None) -> dict[str, Any]:
        return {"prompt": list(prompt), "sampling": sampling, "adapter": adapter}

    def complete(self, body: dict[str, Any]) -> ScriptedCompletion:
        self.bodies.append(body)
        chunks = [
            {"content": word, "tokens": [1], "stop": False, "tokens_predicted": i}
            for i, word in enumerate(self.words, 1)
        ]
        return ScriptedCompletion(self, [*chunks, {**self.last, "tokens_predicted": len(self.words)}])


def make_app(
    engine: ScriptedEngine, *, slots: int = 2, queue: int = 2, guard: Guard | None = None, limits: Limits | None = None
) -> App:
    """Return an application that offers a base and a run with a system prompt."""
    framing = framing_for(tiny_tokenizer("chatml"), Tokens())
    stops = frozenset(framing.stop_tokens)
    offers = {
        "base": LlamaModel("base", framing, stops, None, None),
        "zhenhuan": LlamaModel("zhenhuan", framing, stops, "你是甄嬛。", 0),
    }
    answering = Answering(engine, Admission(slots, queue))  # type: ignore[arg-type]
    return App(offers, answering, guard or Guard(), limits or Limits())


async def until(condition: Any, seconds: float = HANG_SECONDS) -> None:
    """Wait until ``condition()`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.005)


ASK = {"model": "zhenhuan", "messages": [{"role": "user", "content": "你是谁？"}]}
