"""Cut a packed row into chunks for layers that carry a state from token to token, such as linear attention.

The state after a token depends only on the token's own conversation. So a chunk need not be a line: it holds at most
``size`` tokens that all continue from one state, whole sibling subtrees together. Inside a chunk the one rule of
:mod:`.pack` says which tokens lie on the path to a token. Chunks of one level do not depend on each other.

    tree:   S ─┬─ U1 ─┬─ A1         chunks:   level 0   [S]
               │      └─ A3                   level 1   [U1 A1 A3]  [U2 A2]   both continue from the state after S
               └─ U2 ─── A2

A convolution of k taps reads the last k tokens of a token's own conversation. Most of them are the rows just before it;
:func:`find_windows` finds the others.

Cost: O(1) a token, and chunks · ``size``² bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weitune.data.answers import Ints


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """The chunks ``start`` to ``stop`` (exclusive)."""

    start: int
    stop: int
    states: Ints | None
    """(chunks,) which of the states that the level before leaves each chunk continues from; None on the first level"""
    leaving: tuple[Ints, Ints] | None
    """The chunk (E,), counted from ``start``, and the place in it (E,) of each token whose state is left for the next
    level; None on the last level"""


@dataclass(frozen=True, slots=True, eq=False)
class TreeChunks:
    """A packed row of T tokens in N chunks of C places, level by level."""

    rows: Ints
    """(N, C) the row at every place, ascending in a chunk; T at the empty places at its end"""
    places: Ints
    """(T,) where each row is, as an index into the N·C places"""
    seen: npt.NDArray[np.bool_]
    """(N, C, C) whether place i sees place j"""
    levels: Sequence[Level]


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The rows whose own conversation is not what stands before them, for a convolution of k taps."""

    rows: Ints
    """(F,)"""
    before: Ints
    """(F, k) the row 0, 1, … k - 1 tokens back from each of them; T before the beginning"""


@dataclass(slots=True, eq=False)
class _Chunk:
    level: int
    start: tuple[int, int] | None
    """the chunk and the place from whose state it continues"""
    rows: list[int]


def find_windows(position_ids: Ints, taps: int) -> Windows:
    """Return the rows of a packed row whose last ``taps`` tokens are not the rows just before them."""
    back = tokens_back(position_ids, taps)
    plain = np.arange(len(back))[:, None] - np.arange(taps)
    rows = np.flatnonzero((back != np.where(plain < 0, len(back), plain)).any(axis=1))
    return Windows(rows, back[rows])


def tokens_back(position_ids: Ints, taps: int) -> Ints:
    """Return the row 0, 1, … ``taps`` - 1 tokens back in each row's own conversation, (T, taps); T if there is none."""
    length = len(position_ids)
    latest: dict[int, int] = {-1: length}  # the last row at each depth: rows are depth first
    parents = np.full(length + 1, length)
    for row, depth in enumerate(position_ids.tolist()):
        parents[row] = latest[depth - 1]
        latest[depth] = row
    columns = [np.arange(length)]
    for _ in range(taps - 1):
        columns.append(parents[columns[-1]])
    return np.stack(columns, axis=1)


def cut_into_chunks(position_ids: Ints, subtree_end: Ints, size: int) -> TreeChunks:
    """Cut a packed row, as :class:`.PackedBatch` describes it, into chunks of at most ``size`` tokens."""
    chunks = _chunks(position_ids, subtree_end, size)
    order = sorted(range(len(chunks)), key=lambda at: chunks[at].level)
    number, ordered = {at: n for n, at in enumerate(order)}, [chunks[at] for at in order]
    length, width = len(position_ids), max(len(chunk.rows) for chunk in chunks)
    rows = np.full((len(chunks), width), length)
    places = np.empty(length, dtype=np.int64)
    for at, chunk in enumerate(ordered):
        rows[at, : len(chunk.rows)] = chunk.rows
        places[chunk.rows] = at * width + np.arange(len(chunk.rows))
    ends = np.append(subtree_end, -1)[rows]
    seen = (rows[:, None, :] <= rows[:, :, None]) & (rows[:, :, None] < ends[:, None, :])
    starts = [chunk.start and (number[chunk.start[0]], chunk.start[1]) for chunk in ordered]
    return TreeChunks(rows, places, seen, list(_levels([chunk.level for chunk in ordered], starts)))


def _levels(levels: Sequence[int], starts: Sequence[tuple[int, int] | None]) -> Iterator[Level]:
    """Yield the levels of chunks, of which each has its level and the chunk and place that it continues from."""
    bounds = [levels.index(level) for level in range(levels[-1] + 1)] + [len(levels)]
    left: dict[tuple[int, int], int] = {}
    for start, stop, after in zip(bounds[:-1], bounds[1:], [*bounds[2:], len(levels)], strict=True):
        states = np.array([left[each] for each in starts[start:stop] if each]) if start else None
        wanted = sorted({each for each in starts[stop:after] if each})
        left = {each: at for at, each in enumerate(wanted)}
        leaving = (np.array([chunk - start for chunk, _ in wanted]), np.array([place for _, place in wanted]))
        yield Level(start, stop, states, leaving if wanted else None)


def _chunks(position_ids: Ints, subtree_end: Ints, size: int) -> list[_Chunk]:
    """Return the chunks; those of one level lie in no particular order."""
    ends, run_ends = subtree_end.tolist(), _run_ends(position_ids, subtree_end).tolist()
    chunks: list[_Chunk] = []
    waiting: list[tuple[int, tuple[int, int] | None, list[int]]] = [(0, None, _siblings(0, len(ends), ends))]
    while waiting:
        level, start, subtrees = waiting.pop()
        groups: list[list[int]] = []
        for first in subtrees:
            if ends[first] - first <= size:
                group = next((each for each in groups if len(each) + ends[first] - first <= size), None)
                if group is None:
                    group = []
                    groups.append(group)
                    chunks.append(_Chunk(level, start, group))
                group += range(first, ends[first])
                continue
            stop = min(run_ends[first], first + size)
            rows, rest = list(range(first, stop)), []
            for child in _siblings(stop, ends[stop - 1], ends):
                if len(rows) + ends[child] - child <= size:
                    rows += range(child, ends[child])
                else:
                    rest.append(child)
            waiting.append((level + 1, (len(chunks), stop - first - 1), rest))
            chunks.append(_Chunk(level, start, rows))
    return chunks


def _siblings(first: int, stop: int, ends: Sequence[int]) -> list[int]:
    """Return the first rows of the subtrees that lie side by side from ``first`` to ``stop``."""
    siblings = []
    while first < stop:
        siblings.append(first)
        first = ends[first]
    return siblings


def _run_ends(position_ids: Ints, subtree_end: Ints) -> Ints:
    """Return for every row the end (exclusive) of the line without forks that it lies on."""
    begins = np.ones(len(position_ids), dtype=bool)
    begins[1:] = (np.diff(position_ids) != 1) | (np.diff(subtree_end) != 0)
    starts = np.flatnonzero(begins)
    ends: Ints = np.append(starts[1:], len(position_ids))[np.cumsum(begins) - 1]
    return ends
