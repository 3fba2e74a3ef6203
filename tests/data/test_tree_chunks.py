"""Every token of a chunk has the path that the chunk's start state and the one rule say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.data.examples import examples
from weitune.data.conversation import Example, Span
from weitune.data.pack import PackedBatch, pack, pack_separately, visible
from weitune.data.tree_chunks import TreeChunks, cut_into_chunks, find_windows, tokens_back

SIZES = st.integers(1, 9)


@given(examples, SIZES, st.booleans())
def test_a_chunk_goes_on_from_the_state_of_the_token_before_it(
    batch_examples: list[Example], size: int, shared: bool
) -> None:
    batch = (pack if shared else pack_separately)(batch_examples)
    chunks = cut_into_chunks(batch.position_ids, batch.subtree_end, size)
    assert sorted(row for rows in paths(chunks, len(batch)) for row in rows) == list(range(len(batch)))
    expected = {row: {int(each) for each in np.flatnonzero(seen)} for row, seen in enumerate(visible(batch))}
    assert {row: path for rows in paths(chunks, len(batch)) for row, path in rows.items()} == expected


def paths(chunks: TreeChunks, length: int) -> list[dict[int, set[int]]]:
    """Return for every chunk the path of each of its rows, followed level by level, as a scan follows it."""
    found: list[dict[int, set[int]]] = []
    states: list[set[int]] = []
    for level in chunks.levels:
        here = []
        for at in range(level.start, level.stop):
            before = states[level.states[at - level.start]] if level.states is not None else set()
            rows = chunks.rows[at]
            here.append({int(r): before | set(rows[chunks.seen[at, i]].tolist()) for i, r in enumerate(rows)})
            here[-1].pop(length, None)
        found += here
        if level.leaving is not None:
            left = zip(*level.leaving, strict=True)
            states = [here[chunk][int(chunks.rows[level.start + chunk, place])] for chunk, place in left]
    return found


@given(examples, SIZES)
def test_places_are_where_the_rows_are(batch_examples: list[Example], size: int) -> None:
    batch = pack(batch_examples)
    chunks = cut_into_chunks(batch.position_ids, batch.subtree_end, size)
    assert chunks.rows.shape[1] <= size
    assert (chunks.rows.ravel()[chunks.places] == np.arange(len(batch))).all()
    assert (chunks.rows < len(batch)).sum() == len(batch)
    empty = chunks.rows == len(batch)
    assert not chunks.seen.any(axis=1)[empty].any()
    assert (np.diff(chunks.rows, axis=1) > 0)[~empty[:, 1:]].all()  # so that what a token sees stands before it


@given(examples, st.integers(1, 5))
def test_windows_are_the_last_tokens_of_a_conversation(batch_examples: list[Example], taps: int) -> None:
    batch = pack(batch_examples)
    back, windows = tokens_back(batch.position_ids, taps), find_windows(batch.position_ids, taps)
    for row, seen in enumerate(visible(batch)):
        own = np.flatnonzero(seen)[::-1][:taps].tolist()
        assert back[row].tolist() == own + [len(batch)] * (taps - len(own))
        plain = [each if each >= 0 else len(batch) for each in range(row, row - taps, -1)]
        assert (row in windows.rows) == (back[row].tolist() != plain)
    assert (windows.before == back[windows.rows]).all()


def line(length: int, *, begin: int = 0) -> Example:
    return Example(tuple(range(begin, begin + length + 1)), (Span(length, length + 1),))


def shapes(batch: PackedBatch, size: int) -> list[list[int]]:
    chunks = cut_into_chunks(batch.position_ids, batch.subtree_end, size)
    return [(chunks.rows[level.start : level.stop] < len(batch)).sum(axis=1).tolist() for level in chunks.levels]


def test_a_line_is_cut_into_whole_chunks_and_a_rest() -> None:
    assert shapes(pack([line(10)]), 4) == [[4], [4], [2]]
    assert shapes(pack([line(8)]), 4) == [[4], [4]]


def test_short_conversations_without_a_common_beginning_share_a_chunk() -> None:
    assert shapes(pack([line(2, begin=10 * n) for n in range(6)]), 6) == [[6, 6]]


def test_siblings_share_a_chunk_after_what_they_have_in_common() -> None:
    own = [Example((*range(4), 10 * n, 10 * n + 1, 5), (Span(6, 7),)) for n in range(1, 5)]
    assert shapes(pack(own), 4) == [[4], [4, 4]]
    assert shapes(pack(own), 6) == [[6], [6]]  # what remains of the first chunk is used
