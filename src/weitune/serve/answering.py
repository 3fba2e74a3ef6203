"""From a request to text, piece by piece: the bridge between asyncio and the engine.

    request ── frame ──▶ tokens ──▶ slot ──▶ thread: llama.cpp's stream, Piece, Piece, … ──▶ asyncio queue

A thread reads each running answer, so there are as many threads as slots. llama.cpp streams every answer, because it
then notices within a token that nobody reads any more. If the client wants the answer whole, the thread joins it into
one piece: waking the event loop at each token would take time from llama.cpp. When the task that iterates is cancelled
(its client has disconnected), the engine's connection is closed, and llama.cpp stops after the current token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from weitune.errors import InputError
from weitune.generate.llama_cpp import Completion, LlamaCpp
from weitune.generate.llama_engine import ChunkReader, Piece
from weitune.serve.admission import Admission
from weitune.serve.errors import ApiError
from weitune.serve.request import ChatRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FramedRequest:
    """A request whose prompt has been tokenized and fits."""

    request: ChatRequest
    prompt: tuple[int, ...]


class Answering:
    """Answers requests with one engine."""

    def __init__(self, llama: LlamaCpp, admission: Admission) -> None:
        self.llama, self.admission = llama, admission
        self._readers = ThreadPoolExecutor(admission.slots, thread_name_prefix="answer")

    def frame(self, request: ChatRequest) -> FramedRequest:
        """Tokenize the prompt of ``request``. Raises ApiError if it cannot be framed or is too long."""
        try:
            prompt = tuple(request.model.framing.prompt(request.conversation))
        except InputError as error:
            raise ApiError(400, "serve.errors.passed_on", message=error.message, param="messages") from None
        room = self.llama.context_tokens - len(prompt)
        if room < 1:
            raise ApiError(
                400,
                "serve.answering.too_long",
                prompt_tokens=len(prompt),
                context_tokens=self.llama.context_tokens,
                param="messages",
                code="context_length_exceeded",
            )
        longest = min(request.sampling.max_new_tokens, room)
        return FramedRequest(replace(request, sampling=replace(request.sampling, max_new_tokens=longest)), prompt)

    async def answer(self, framed: FramedRequest, choice: int = 0) -> AsyncGenerator[Piece, None]:
        """Yield one answer, in pieces if the request wants it streamed. Raises ApiError if the engine refuses it.

        ``choice`` numbers the answers to one request; each has another seed.
        """
        async with self.admission.slot():
            completion = self.llama.complete(self._body(framed, choice))
            pieces = _pieces(completion, framed.request.model.stop_tokens)
            wanted = pieces if framed.request.stream else _joined(pieces)
            async with aclosing(_read(wanted, completion, self._readers)) as read:
                async for piece in read:
                    yield piece

    def _body(self, framed: FramedRequest, choice: int) -> dict[str, Any]:
        request = framed.request
        sampling = request.sampling
        if sampling.seed is not None and choice:
            sampling = replace(sampling, seed=sampling.seed + choice)
        body = self.llama.body(framed.prompt, sampling, request.model.adapter)
        return {**body, **request.extra, "stop": list(request.stop)}


def _pieces(completion: Completion, stop_tokens: frozenset[int]) -> Iterator[Piece]:
    """Turn the engine's chunks into pieces. Raises ApiError if the engine refuses the request or breaks off."""
    reader = ChunkReader(stop_tokens)
    try:
        for chunk in completion:
            piece = reader.read(chunk)
            if piece.text or piece.finish:
                yield piece
            if piece.finish:
                return
    except InputError as error:
        raise ApiError(400, "serve.errors.passed_on", message=error.message) from None
    raise ApiError(500, "serve.answering.broke_off")


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    *texts, last = pieces
    yield replace(last, text="".join(piece.text for piece in (*texts, last)))


async def _read(items: Iterable[T], completion: Completion, threads: ThreadPoolExecutor) -> AsyncGenerator[T, None]:
    """Yield ``items``, which read ``completion`` in a thread, and close it at the end."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()

    def put(item: T | Exception | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, item)

    def read() -> None:
        try:
            for item in items:
                put(item)
        except Exception as error:  # noqa: BLE001  (raised again in the task that reads)
            put(error)
        finally:
            put(None)

    reading = loop.run_in_executor(threads, read)
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        completion.close()
        await asyncio.shield(reading)
