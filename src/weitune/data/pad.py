"""Pad examples into a rectangle: the layout for models that cannot share prefixes.

Models that mix tokens with anything but plain softmax attention need each conversation in a row of its own. Examples of
similar length go together, so that there is little padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weitune.data.answers import AnswerBatch, Ints
from weitune.data.conversation import Example


@dataclass(frozen=True, slots=True, eq=False)
class PaddedBatch:
    """B conversations of at most L tokens with N supervised predictions."""

    input_ids: Ints
    """(B, L) tokens, then padding."""
    attention_mask: Ints
    """(B, L) 1 on tokens, 0 on padding."""
    rows: Ints
    """(N,) index into the B·L positions, row by row, whose hidden state predicts …"""
    targets: Ints
    """(N,) … this token."""
    weights: npt.NDArray[np.float32]
    """(N,) how much each prediction counts."""
    answers: AnswerBatch | None = None
    """Which predictions make up which answer, in a batch of groups (:mod:`.pack_groups`)."""

    def __len__(self) -> int:
        """Return the number of positions that are computed, B·L."""
        return int(self.input_ids.size)


def pad(examples: Sequence[Example], pad_token: int = 0) -> PaddedBatch:
    """Lay the inputs of ``examples`` out as one rectangle, padded on the right. Raises ValueError if there are none."""
    if not examples:
        raise ValueError("a batch needs at least one example")
    longest = max(len(example.inputs) for example in examples)
    input_ids = np.full((len(examples), longest), pad_token, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    predictions: list[tuple[int, int, float]] = []  # row of the flat positions, target, weight
    for row, example in enumerate(examples):
        length = len(example.inputs)
        input_ids[row, :length] = example.inputs
        attention_mask[row, :length] = 1
        start = row * longest - 1
        predictions += [(start + depth, token, weight) for depth, token, weight in example.predictions() if weight]
    rows, targets, weights = zip(*predictions, strict=True) if predictions else ((), (), ())
    return PaddedBatch(
        input_ids,
        attention_mask,
        np.asarray(rows, dtype=np.int64),
        np.asarray(targets, dtype=np.int64),
        np.asarray(weights, dtype=np.float32),
    )


def split_by_length(examples: Sequence[Example], micro_tokens: int) -> list[list[Example]]:
    """Split a step's examples into rectangles of at most ``micro_tokens`` positions, longest first.

    A rectangle holds at least one example, however long. The split does not depend on the order of ``examples``.
    """
    ordered = sorted(examples, key=lambda e: (-len(e.inputs), e.input_ids, e.spans))
    batches: list[list[Example]] = []
    for example in ordered:
        if not batches or (len(batches[-1]) + 1) * len(batches[-1][0].inputs) > micro_tokens:
            batches.append([])
        batches[-1].append(example)
    return batches
