"""Serve runs with llama.cpp in this process: at an address, or as an application to be mounted in another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from weitune.export.llama_models import LlamaModels, llama_models
from weitune.generate.llama_cpp import LlamaCpp
from weitune.generate.run import Run
from weitune.gguf.types import GgufType
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
    with _loaded(models, capacity, guard, limits) as app:
        asyncio.run(_serve(app, listening, started))


@contextmanager
def application(
    runs: Mapping[str, Run],
    gguf_type: GgufType = "Q8_0",
    *,
    capacity: Capacity | None = None,
    guard: Guard | None = None,
    limits: Limits | None = None,
) -> Iterator[App]:
    """Yield the ASGI application that serves ``runs``, by their names, and their base, to be mounted in another.

    It answers under the path at which it is mounted (``root_path``), and only under the names that ``guard`` allows.
    The model is unloaded when the block ends. Raises InputError if a run cannot be given to llama.cpp.
    """
    with (
        llama_models(runs, gguf_type, lambda title: lambda done, total: None) as models,
        _loaded(models, capacity or Capacity(), guard or Guard(), limits or Limits()) as app,
    ):
        yield app


@contextmanager
def _loaded(models: LlamaModels, capacity: Capacity, guard: Guard, limits: Limits) -> Iterator[App]:
    with LlamaCpp(
        models.base,
        models.adapters,
        slots=capacity.slots,
        context_tokens=min(capacity.context_tokens, models.context_tokens),
        threads=capacity.threads,
        exact=models.exact,
    ) as llama:
        yield App(models.by_name, Answering(llama, Admission(capacity.slots, capacity.queue)), guard, limits)


async def _serve(app: App, listening: socket.socket, started: Callable[[str, Server], None]) -> None:
    server = http_server(app)
    started(url_of(listening), server)  # the socket listens already: requests that come now wait a moment
    await server.serve(sockets=[listening])
