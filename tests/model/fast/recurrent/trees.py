"""Packed rows of every shape that a recurrent layer has to get right."""

from __future__ import annotations

import random

import torch
from hypothesis import strategies as st

from weitune.data.conversation import Example, Span
from weitune.data.pack import PackedBatch, pack, pack_separately
from weitune.data.tree_chunks import cut_into_chunks
from weitune.model.fast.recurrent.chunks import Chunks

CPU = torch.device("cpu")


@st.composite
def rows(draw: st.DrawFn) -> PackedBatch:
    """A row with forks, copies, segments of one token, and conversations without a common beginning."""
    tokens = draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=10))
    examples = [Example(tuple(ids), (Span(1, len(ids)),)) for ids in tokens]
    return draw(st.sampled_from([pack, pack_separately]))(examples)


def long_row(tokens: int) -> PackedBatch:
    """A row of about ``tokens`` tokens whose segments are shorter, as long and longer than a chunk of 64."""
    draw, texts = random.Random(0), [()]
    while sum(map(len, texts)) < tokens:
        base = draw.choice(texts)
        base = base[: draw.randrange(len(base) + 1)]
        texts.append((*base, *(draw.randrange(50) for _ in range(draw.choice([2, 3, 5, 17, 40, 64, 65, 129])))))
    return pack([Example(text, (Span(1, len(text)),)) for text in texts if len(text) > 1])


def chunks_of(row: PackedBatch, size: int) -> Chunks:
    return Chunks.from_numbers(cut_into_chunks(row.position_ids, row.subtree_end, size), CPU)
