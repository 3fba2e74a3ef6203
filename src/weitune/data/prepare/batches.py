"""Frame and tokenize rows in batches, both at the same time.

    main thread    frame 3 ─── finish 1 ─── frame 4 ─── finish 2 ─── …
    tokenizer      ═══ 2 ═══════ 3 ═══════════ 4 ═══                  all cores, without Python's lock

A batch ends after 1024 examples or 4 million characters, whichever comes first; three of them are in memory.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from weitune.data.conversation import Conversation, Example
from weitune.data.frame.encode import Draft, EncodingBatch
from weitune.data.frame.framing import Framing
from weitune.data.problems import Problem
from weitune.data.read.conversations import Reader
from weitune.errors import DataError

_BATCH = 1024
_BATCH_CHARACTERS = 4_000_000
_AHEAD = 2
"""Batches that wait for the tokenizer while the next one is framed."""


class FramedRow(NamedTuple):
    """A row whose drafts, and later its examples, are ``start`` to ``stop`` (exclusive) of its batch."""

    source: int
    conversation: Conversation
    start: int
    stop: int


def encoded_batches(
    reader: Reader, framing: Framing, system: str | None, *, forms: bool = True
) -> Iterator[tuple[list[FramedRow], list[Example | DataError]]]:
    """Yield batches of rows with their examples; the tokenizer works on some while the next one is framed.

    Raises FormDiffers if ``forms`` (:mod:`weitune.data.frame.forms`) do not fit the rows.
    """
    draft = framing.drafting() if forms else framing.draft
    waiting: deque[tuple[list[FramedRow], list[Draft], EncodingBatch, Future[None]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for rows, drafts in _framed(reader, draft, system):
            batch = framing.begin(drafts)
            waiting.append((rows, drafts, batch, pool.submit(batch.run)))
            if len(waiting) > _AHEAD:
                yield _finished(framing, *waiting.popleft())
        while waiting:
            yield _finished(framing, *waiting.popleft())


def _finished(
    framing: Framing, rows: list[FramedRow], drafts: list[Draft], batch: EncodingBatch, run: Future[None]
) -> tuple[list[FramedRow], list[Example | DataError]]:
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
    reader: Reader, draft: Callable[[Conversation], list[Draft]], system: str | None
) -> Iterator[tuple[list[FramedRow], list[Draft]]]:
    """Yield batches of rows with their drafts; a row that cannot be framed goes to the reader's problems."""
    rows: list[FramedRow] = []
    drafts: list[Draft] = []
    characters = 0
    for source, read in reader.conversations():
        conversation = read.with_system(system)
        try:
            made = draft(conversation)
        except DataError as error:
            reader.problems.add([problem for problem in error.problems if isinstance(problem, Problem)])
            continue
        rows.append(FramedRow(source, conversation, len(drafts), len(drafts) + len(made)))
        drafts += made
        for turn in conversation.turns:
            characters += len(turn.content) * len(made)
        if len(drafts) >= _BATCH or characters >= _BATCH_CHARACTERS:
            yield rows, drafts
            rows, drafts, characters = [], [], 0
    yield rows, drafts


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
