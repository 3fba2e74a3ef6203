"""Pack examples into one row in which every distinct prefix token occurs once: the prefix tree, depth first.

    examples:   S U1 A1 · S U2 A2 · S U1 A3            tree:   S ─┬─ U1 ─┬─ A1
                                                                  │      └─ A3
    row:        S  U1  A1  A3  U2  A2                             └─ U2 ─── A2
    depth:      0  1   2   2   1   2
    end:        6  4   3   4   6   6

Token i sees token j exactly when ``j <= i < subtree_end[j]``: j is i or an ancestor of i. A causal model's hidden state
at a token depends only on its ancestors, so the row holds exactly the states that the separate examples would have.

The last supervised token of an example is a target, but is not in the row, since nothing is predicted from it; tokens
after it are left out. The weight of a prediction is the sum over all examples that make it there, so duplicates count
as often as they occur.

Cost: sorting, then O(1) a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weitune.data.answers import AnswerBatch, Ints
from weitune.data.conversation import Example
from weitune.data.partition import shared_length


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """One row of T tokens with N supervised predictions."""

    input_ids: Ints
    """(T,) tokens, depth first."""
    position_ids: Ints
    """(T,) depth of the token in its own conversation, from 0."""
    subtree_end: Ints
    """(T,) row index one past the last token below this one."""
    rows: Ints
    """(N,) row index whose hidden state predicts … ; a fork appears once for every branch."""
    targets: Ints
    """(N,) … this token."""
    weights: npt.NDArray[np.float32]
    """(N,) how much each prediction counts: duplicates add up."""
    answers: AnswerBatch | None = None
    """Which predictions make up which answer, in a row of groups (:mod:`.pack_groups`)."""

    def __len__(self) -> int:
        return len(self.input_ids)


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Lay the prefix tree of ``examples`` out as one row. The result does not depend on their order.

    Raises ValueError if there are no examples or one of them has nothing to learn.
    """
    if not examples or not all(example.inputs for example in examples):
        raise ValueError("a row needs at least one example, and every example something to learn")
    tree = PrefixTree()
    predictions: dict[tuple[int, int], float] = {}  # (row, target) to weight
    for example in sorted(examples, key=depth_first):
        path = tree.add(example.inputs)
        for depth, token, weight in example.predictions():
            prediction = path[depth - 1], token
            predictions[prediction] = predictions.get(prediction, 0.0) + weight
    ordered = sorted(prediction for prediction, weight in predictions.items() if weight)
    return tree.laid_out(ordered, [predictions[prediction] for prediction in ordered])


def depth_first(example: Example) -> tuple[Any, ...]:
    """Return a key by which examples come in the order of their prefix tree."""
    return example.inputs, example.input_ids, example.spans


class PrefixTree:
    """The row of a prefix tree while sequences are added to it, in sorted order."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._depths: list[int] = []
        self._ends: list[int] = []
        self._path: list[int] = []
        """Row index of every token of the last sequence"""
        self._last: Sequence[int] = ()

    def add(self, ids: Sequence[int]) -> Sequence[int]:
        """Add the tokens of ``ids`` that the sequence before has not; return the row index of each (until the next)."""
        tokens, path = self._tokens, self._path
        shared = shared_length(self._last, ids)
        for row in path[shared:]:
            self._ends[row] = len(tokens)
        path[shared:] = range(len(tokens), len(tokens) + len(ids) - shared)
        tokens += ids[shared:]
        self._depths += range(shared, len(ids))
        self._ends += [-1] * (len(ids) - shared)
        self._last = ids
        return path

    def laid_out(
        self, predictions: Sequence[tuple[int, int]], weights: Sequence[float], answers: AnswerBatch | None = None
    ) -> PackedBatch:
        """Return the row with ``predictions``, each a row index and a target."""
        for row in self._path:
            self._ends[row] = len(self._tokens)
        return PackedBatch(
            input_ids=np.asarray(self._tokens, dtype=np.int64),
            position_ids=np.asarray(self._depths, dtype=np.int64),
            subtree_end=np.asarray(self._ends, dtype=np.int64),
            rows=np.asarray([row for row, _ in predictions], dtype=np.int64),
            targets=np.asarray([target for _, target in predictions], dtype=np.int64),
            weights=np.asarray(weights, dtype=np.float32),
            answers=answers,
        )


def visible(batch: PackedBatch) -> npt.NDArray[np.bool_]:
    """Return the mask (T, T) of the one rule: entry (i, j) is whether token i sees token j. The readable reference."""
    i = np.arange(len(batch))[:, None]
    j = np.arange(len(batch))[None, :]
    return (j <= i) & (i < batch.subtree_end[None, :])


def pack_separately(examples: Sequence[Example]) -> PackedBatch:
    """Lay ``examples`` out one after another, sharing nothing: the readable twin of :func:`pack`.

    The same rule for visibility holds, and the predictions have the same sum of weights.
    """
    singles = [pack([example]) for example in examples]
    offsets = np.cumsum([0, *(len(single) for single in singles[:-1])])
    return PackedBatch(
        input_ids=np.concatenate([single.input_ids for single in singles]),
        position_ids=np.concatenate([single.position_ids for single in singles]),
        subtree_end=np.concatenate([s.subtree_end + o for s, o in zip(singles, offsets, strict=True)]),
        rows=np.concatenate([s.rows + o for s, o in zip(singles, offsets, strict=True)]),
        targets=np.concatenate([single.targets for single in singles]),
        weights=np.concatenate([single.weights for single in singles]),
    )
