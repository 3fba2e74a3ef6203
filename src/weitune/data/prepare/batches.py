"""Frame and tokenize rows in batches, both at the same time.

    main thread    frame 3 ─── finish 1 ─── frame 4 ─── finish 2 ─── …
    tokenizer      ═══ 2 ═══════ 3 ═══════════ 4 ═══                  all cores, without Python's lock

A batch ends after 1024 examples or 4 million characters, whichever comes first; three of them are in memory.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from weitune.data.columns import ExampleColumns, Ints, ends_of
from weitune.data.conversation import Example, Origin
from weitune.data.frame.encode import Draft, EncodingBatch, Text
from weitune.data.frame.framing import Framing
from weitune.data.problems import Problem, Problems
from weitune.errors import DataError

_BATCH = 1024
_BATCH_CHARACTERS = 4_000_000
_AHEAD = 2
"""Batches that wait for the tokenizer while the next one is framed."""


R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class EncodedRows(Generic[R]):
    """Rows, each with the number of its source, and their examples."""

    rows: Sequence[tuple[int, R]]
    ends: Ints
    """Where the examples of each row end among ``examples``, after a 0, (rows + 1,)."""
    examples: ExampleColumns
    faults: Mapping[int, DataError]
    """Examples that cannot be encoded, by number; they are empty in ``examples``."""

    def of_row(self, i: int, origin: Origin | None) -> list[Example | DataError]:
        """Return the examples of row ``i``, which was read at ``origin``."""
        numbers = range(self.ends[i], self.ends[i + 1])
        return [self.faults.get(n) or self.examples.example(n, origin) for n in numbers]


def encoded_batches(
    rows: Iterable[tuple[int, R]], draft: Callable[[R], list[Draft]], framing: Framing, problems: Problems
) -> Iterator[EncodedRows[R]]:
    """Yield batches of ``rows``, each with the number of its source, with their examples.

    The tokenizer works on some while the next one is framed. ``draft`` frames a row; if it cannot, the row goes to
    ``problems``. Raises what ``draft`` raises besides DataError.
    """
    waiting: deque[tuple[_Framed[R], EncodingBatch, Future[None]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for framed in _framed(rows, draft, problems):
            batch = framing.begin(framed.drafts)
            waiting.append((framed, batch, pool.submit(batch.run)))
            if len(waiting) > _AHEAD:
                yield _finished(framing, *waiting.popleft())
        while waiting:
            yield _finished(framing, *waiting.popleft())


def _finished(framing: Framing, framed: _Framed[R], batch: EncodingBatch, run: Future[None]) -> EncodedRows[R]:
    """Wait for a batch. If one of its drafts cannot be encoded, each is encoded by itself to find out which."""
    run.result()
    ends = ends_of(framed.counts)
    try:
        return EncodedRows(framed.rows, ends, batch.columns(), {})
    except DataError:
        examples = [_encode_one(framing, draft) for draft in framed.drafts]
    faults = {n: example for n, example in enumerate(examples) if isinstance(example, DataError)}
    valid = [example if isinstance(example, Example) else Example((), ()) for example in examples]
    return EncodedRows(framed.rows, ends, ExampleColumns.of(valid), faults)


def _encode_one(framing: Framing, draft: Draft) -> Example | DataError:
    try:
        return framing.encode([draft])[0]
    except DataError as error:
        return error


@dataclass(slots=True)
class _Framed(Generic[R]):
    """A batch of rows, how many drafts each has, and their drafts."""

    rows: list[tuple[int, R]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)


def _framed(
    rows: Iterable[tuple[int, R]], draft: Callable[[R], list[Draft]], problems: Problems
) -> Iterator[_Framed[R]]:
    """Yield batches of rows with their drafts; a row that cannot be framed goes to ``problems``."""
    framed: _Framed[R] = _Framed()
    characters = 0
    for row in rows:
        try:
            made = draft(row[1])
        except DataError as error:
            problems.add([problem for problem in error.problems if isinstance(problem, Problem)])
            continue
        framed.rows.append(row)
        framed.counts.append(len(made))
        framed.drafts.extend(made)
        characters += sum([len(piece[0]) for each in made for piece in each.pieces if type(piece) is Text])
        if len(framed.drafts) >= _BATCH or characters >= _BATCH_CHARACTERS:
            yield framed
            framed, characters = _Framed(), 0
    yield framed


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
