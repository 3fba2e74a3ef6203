"""Serve runs with llama.cpp in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from weitune.export.llama_models import LlamaModels
from weitune.generate.llama_cpp import LlamaCpp
from weitune.serve.admission import Admission
from weitune.serve.answers.answering import Answering
from weitune.serve.app import App
from weitune.serve.guard import Guard
from weitune.serve.http import Server, http_server, url_of
from weitune.serve.requests.request import Limits


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many answers are generated at once, and how large they may be."""

    slots: int = 4
    """Answers generated at the same time."""
    queue: int = 32
    """Answers that may wait; any more are refused with 429."""
    context_tokens: int = 4096
    """Longest prompt and answer together; at most what the model knows."""
    threads: int | None = None
    """Cores to compute on; None: all that this process may use."""


def serve(
    models: LlamaModels,
    listening: socket.socket,
    capacity: Capacity,
    guard: Guard,
    limits: Limits,
    *,
    started: Callable[[str, Server], None] = lambda url, server: None,
) -> None:
    """Load ``models`` and serve them at ``listening`` until a signal comes.

    ``started`` is called with the URL and the server, whose ``should_exit`` ends it as well.
    """
    context = min(capacity.context_tokens, models.context_tokens)
    with LlamaCpp(
        models.base,
        models.adapters,
        slots=capacity.slots,
        context_tokens=context,
        threads=capacity.threads,
        exact=models.exact,
    ) as llama:
        asyncio.run(_serve(llama, models, listening, capacity, guard, limits, started))


async def _serve(
    llama: LlamaCpp,
    models: LlamaModels,
    listening: socket.socket,
    capacity: Capacity,
    guard: Guard,
    limits: Limits,
    started: Callable[[str, Server], None],
) -> None:
    admission = Admission(capacity.slots, capacity.queue)
    app = App(models.by_name, Answering(llama, admission), guard, limits)
    server = http_server(app)
    started(url_of(listening), server)  # the socket listens already: requests that come now wait a moment
    await server.serve(sockets=[listening])
