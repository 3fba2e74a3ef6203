"""Hold out a part of the examples, so that validation uses none that were learned.

    prompt A: 3 rows   ─▶ trained            rows with one prompt stay together, and so do the examples
    prompt B: 1 row    ─▶ held out           that one row makes, one for each learned turn
    prompt C: 2 rows   ─▶ trained

The SHA-256 of a prompt decides whether it is held out, not the seed or the order of the rows, so that runs with
different recipes are validated with the same rows. A prompt is the tokens before the first learned one. A prompt that
many rows share, such as "Who are you?" in the data of a persona, is learned: held out, it would outweigh all others in
the loss, and the model would not know the answer.

Cost: every example is read once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Example, Origin
from weitune.errors import DataError

Indices = npt.NDArray[np.int64]

LARGEST_SHARE = 0.05
"""Largest share of the rows held out that may have the same prompt, unless there are too few others."""


class ExampleSet(Protocol):
    """Prepared examples by number, or a part of them."""

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every example, (examples,)."""

    @property
    def supervised(self) -> npt.NDArray[np.int32]:
        """Learned tokens of every example, (examples,)."""

    def __len__(self) -> int:
        """Return how many examples there are."""

    def __getitem__(self, i: int, /) -> Example:
        """Return example ``i``."""

    def digest(self) -> str:
        """Return the SHA-256 of their contents in order."""


class Selection:
    """Some of the examples of a set, in their order there; nothing is copied but lengths."""

    def __init__(self, examples: ExampleSet, indices: Indices) -> None:
        self._examples, self.indices = examples, indices
        self.lengths: npt.NDArray[np.int32] = examples.lengths[indices]
        self.supervised: npt.NDArray[np.int32] = examples.supervised[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Example:
        return self._examples[int(self.indices[i])]

    def digest(self) -> str:
        """Return a SHA-256 of the set's digest and what is selected."""
        return hashlib.sha256(self._examples.digest().encode() + self.indices.tobytes()).hexdigest()


def hold_out(examples: ExampleSet, fraction: float) -> tuple[Selection, Selection]:
    """Return the examples to train on, and about ``fraction`` of all to validate with.

    Raises DataError if there are too few different prompts for both.
    """
    members: dict[bytes, list[int]] = {}
    rows: Counter[bytes] = Counter()
    for i, (key, begins) in enumerate(_prompts(examples)):
        members.setdefault(key, []).append(i)
        rows[key] += begins
    if len(members) < 2:
        raise DataError("data.holdout.one_prompt", count=len(examples))
    wanted = min(max(1, round(fraction * len(examples))), len(examples) - 1)
    most = max(1.0, LARGEST_SHARE * fraction * rows.total())
    held: list[int] = []
    for key in sorted(members, key=lambda key: (rows[key] > most, key))[:-1]:
        if len(held) >= wanted:
            break
        held += members[key]
    out = np.zeros(len(examples), bool)
    out[held] = True
    return Selection(examples, np.flatnonzero(~out)), Selection(examples, np.flatnonzero(out))


def prompts(examples: ExampleSet) -> Iterator[bytes]:
    """Yield a key for the prompt of each example's row; equal keys mean equal prompts."""
    return (key for key, _ in _prompts(examples))


def _prompts(examples: ExampleSet) -> Iterator[tuple[bytes, bool]]:
    """Yield for every example the key of its row's prompt, and whether it is the row's first."""
    row: Origin | None = None
    key = b""
    for i in range(len(examples)):
        example = examples[i]
        begins = example.origin is None or example.origin != row  # a row's prompt is that of its first example
        if begins:
            tokens = np.asarray(example.input_ids[: example.spans[0].start], np.int32)
            key, row = hashlib.sha256(tokens.tobytes()).digest(), example.origin
        yield key, begins
