"""One answer while it is being generated: tokens cross from the thread that generates to the one that reads.

    generate (own thread) ── put(token) ──▶ queue ──▶ Detokenizer ──▶ text (the reader's thread)
            ▲                                                              │
            └───────────────── asked to stop after this token ◀── close ───┘

transformers' ``generate`` calls a streamer and cannot be iterated; the thread turns that around. An exception in it is
raised in the reader. When the reader stops (close, Ctrl-C, or the stream is dropped), generation ends with the current
token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from weitune.data.conversation import ToolCall
from weitune.generate.detokenize import Detokenizer

END = None
Queue: TypeAlias = "SimpleQueue[int | BaseException | None]"
Start: TypeAlias = "Callable[[TokenQueue, Cancelled], Any]"
"""Generates one answer into the queue until the stopping criterion is met; runs in the stream's thread."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said. ``tokens`` leave out the stop token; ``stopped`` is whether there was one.

    ``stopped`` is false for an answer that was cut at its longest length or by the reader. ``calls`` are those that
    were read out of the text, by a server or for ``weitune data answer``; otherwise the text has them.
    """

    text: str
    tokens: tuple[int, ...]
    stopped: bool
    calls: tuple[ToolCall, ...] = ()


class TokenQueue(BaseStreamer):  # type: ignore[misc]
    """A streamer that hands every generated token of one row to a queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._prompt_seen = False

    def add(self, token: int) -> None:
        self._queue.put(token)

    def put(self, value: Tensor) -> None:
        """Take what ``generate`` reports: the prompt once, then each new token, shape (1,)."""
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._queue.put(token)
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: the thread's own end closes the queue, also after an error."""


class Cancelled(StoppingCriteria):  # type: ignore[misc]
    """Stops every row once the reader has gone."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return for each row whether to stop, shape (B,)."""
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


@dataclass(slots=True)
class _Received:
    """What has arrived so far."""

    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False


class AnswerStream(Iterator[str]):
    """Iterate for the answer's text, piece by piece; generation starts with the first piece asked for.

    :attr:`answer` is what has been said so far, whole once the iteration is over.
    """

    def __init__(self, start: Start, detokenizer: Detokenizer, stop_tokens: frozenset[int]) -> None:
        """Run ``start`` in a thread of its own when the first piece is asked for."""
        self._received = _Received()
        # A function outside this class, so that no cycle keeps a dropped stream (and its thread) alive.
        self._pieces = _receive(self._received, start, detokenizer, stop_tokens)

    def __next__(self) -> str:
        """Return the next piece of text, never an empty one. Raises what the generating thread raised."""
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        received = self._received
        return Answer("".join(received.text), tuple(received.tokens), received.stopped)

    @property
    def length_tokens(self) -> int:
        return len(self._received.tokens)


def _receive(
    received: _Received, start: Start, detokenizer: Detokenizer, stop_tokens: frozenset[int]
) -> Generator[str, None, None]:
    queue: Queue = SimpleQueue()
    cancelled = Cancelled()
    thread = threading.Thread(target=_generate, args=(start, queue, cancelled), name="generate", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not END:
            if isinstance(item, BaseException):
                raise item
            if item in stop_tokens:
                received.stopped = True
                break
            received.tokens.append(item)
            if piece := detokenizer.add(item):
                received.text.append(piece)
                yield piece
    finally:
        cancelled.event.set()
        thread.join()


def _generate(start: Start, queue: Queue, cancelled: Cancelled) -> None:
    """Run in the thread: whatever happens, the reader gets an end."""
    try:
        start(TokenQueue(queue), cancelled)
    except BaseException as error:  # noqa: BLE001  (raised again in the reader's thread)
        queue.put(error)
    finally:
        queue.put(END)
