"""Frame and tokenize rows in batches, both at the same time.

    main thread    frame 3 ─── finish 1 ─── frame 4 ─── finish 2 ─── …
    tokenizer      ═══ 2 ═══════ 3 ═══════════ 4 ═══                  all cores, without Python's lock

A batch ends after 1024 examples or 4 million characters, whichever comes first; three of them are in memory.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from weitune.data.conversation import Example
from weitune.data.frame.encode import Draft, EncodingBatch, Text
from weitune.data.frame.framing import Framing
from weitune.data.problems import Problem, Problems
from weitune.errors import DataError

_BATCH = 1024
_BATCH_CHARACTERS = 4_000_000
_AHEAD = 2
"""Batches that wait for the tokenizer while the next one is framed."""


R = TypeVar("R")


@dataclass(slots=True)
class FramedRow(Generic[R]):
    """A row whose drafts, and later its examples, are ``start`` to ``stop`` (exclusive) of its batch."""

    source: int
    row: R
    start: int
    stop: int


def encoded_batches(
    rows: Iterable[tuple[int, R]], draft: Callable[[R], list[Draft]], framing: Framing, problems: Problems
) -> Iterator[tuple[list[FramedRow[R]], list[Example | DataError]]]:
    """Yield batches of ``rows``, each with the number of its source, with their examples.

    The tokenizer works on some while the next one is framed. ``draft`` frames a row; if it cannot, the row goes to
    ``problems``. Raises what ``draft`` raises besides DataError.
    """
    waiting: deque[tuple[list[FramedRow[R]], list[Draft], EncodingBatch, Future[None]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for framed, drafts in _framed(rows, draft, problems):
            batch = framing.begin(drafts)
            waiting.append((framed, drafts, batch, pool.submit(batch.run)))
            if len(waiting) > _AHEAD:
                yield _finished(framing, *waiting.popleft())
        while waiting:
            yield _finished(framing, *waiting.popleft())


def _finished(
    framing: Framing, rows: list[FramedRow[R]], drafts: list[Draft], batch: EncodingBatch, run: Future[None]
) -> tuple[list[FramedRow[R]], list[Example | DataError]]:
    """Wait for a batch. If one of its drafts cannot be encoded, each is encoded by itself to find out which."""
    run.result()
    try:
        return rows, list(batch.finish())
    except DataError:
        return rows, [_encode_one(framing, draft) for draft in drafts]


def _encode_one(framing: Framing, draft: Draft) -> Example | DataError:
    try:
        return framing.encode([draft])[0]
    except DataError as error:
        return error


def _framed(
    rows: Iterable[tuple[int, R]], draft: Callable[[R], list[Draft]], problems: Problems
) -> Iterator[tuple[list[FramedRow[R]], list[Draft]]]:
    """Yield batches of rows with their drafts; a row that cannot be framed goes to ``problems``."""
    framed: list[FramedRow[R]] = []
    drafts: list[Draft] = []
    characters = 0
    for source, row in rows:
        try:
            made = draft(row)
        except DataError as error:
            problems.add([problem for problem in error.problems if isinstance(problem, Problem)])
            continue
        framed.append(FramedRow(source, row, len(drafts), len(drafts) + len(made)))
        drafts += made
        characters += sum(len(piece.text) for each in made for piece in each.pieces if isinstance(piece, Text))
        if len(drafts) >= _BATCH or characters >= _BATCH_CHARACTERS:
            yield framed, drafts
            framed, drafts, characters = [], [], 0
    yield framed, drafts


@contextmanager
def without_cycle_collection() -> Iterator[None]:
    """Turn the garbage collector off in the block.

    Rows leave no reference cycles, but their many small objects make Python search for some, which took a quarter of
    the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
