"""Hold out a part of the examples or groups, so that validation uses none that were learned.

    prompt A: 3 rows   ─▶ trained            rows with one prompt stay together, and so do the examples
    prompt B: 1 row    ─▶ held out           that one row makes, one for each learned turn
    prompt C: 2 rows   ─▶ trained

The SHA-256 of a prompt decides whether it is held out, not the seed or the order of the rows, so that runs with
different recipes are validated with the same rows. A prompt is the tokens before the first learned one, or the text
before the answers of a group. A prompt that
many rows share, such as "Who are you?" in the data of a persona, is learned: held out, it would outweigh all others in
the loss, and the model would not know the answer.

Cost: every example is read once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Example, Origin
from weitune.data.preference.values import Group, Item
from weitune.data.prepare.group_store import StoredGroups
from weitune.errors import DataError

Indices = npt.NDArray[np.int64]

LARGEST_SHARE = 0.05
"""Largest share of the rows held out that may have the same prompt, unless there are too few others."""


T = TypeVar("T", bound=Item)
T_co = TypeVar("T_co", bound=Item, covariant=True)


class Items(Protocol):
    """Examples or groups by number, in memory or not."""

    def __getitem__(self, i: int, /) -> Item:
        """Return item ``i``."""


class ItemSet(Protocol[T_co]):
    """Prepared examples or groups by number, or a part of them."""

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens that a pass over each of them computes, (items,): of a group, those of the prompt once."""

    @property
    def supervised(self) -> npt.NDArray[np.int32]:
        """Learned tokens of each of them, (items,)."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, i: int, /) -> T_co:
        """Return item ``i``."""

    def digest(self) -> str:
        """Return the SHA-256 of their contents in order."""


ExampleSet: TypeAlias = ItemSet[Example]
GroupSet: TypeAlias = ItemSet[Group]


class Selection(Generic[T]):
    """Some items of a set, in their order there; nothing is copied but lengths."""

    def __init__(self, items: ItemSet[T], indices: Indices) -> None:
        self._items, self.indices = items, indices
        self.lengths: npt.NDArray[np.int32] = items.lengths[indices]
        self.supervised: npt.NDArray[np.int32] = items.supervised[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> T:
        return self._items[int(self.indices[i])]

    def digest(self) -> str:
        """Return a SHA-256 of the set's digest and what is selected."""
        return hashlib.sha256(self._items.digest().encode() + self.indices.tobytes()).hexdigest()


def hold_out(items: ItemSet[T], fraction: float) -> tuple[Selection[T], Selection[T]]:
    """Return the examples or groups to train on, and about ``fraction`` of all to validate with.

    Raises DataError if there are too few different prompts for both.
    """
    members: dict[bytes, list[int]] = {}
    rows: Counter[bytes] = Counter()
    for i, (key, begins) in enumerate(_prompts(items)):
        members.setdefault(key, []).append(i)
        rows[key] += begins
    if len(members) < 2:
        raise DataError("data.holdout.one_prompt", count=len(items))
    wanted = min(max(1, round(fraction * len(items))), len(items) - 1)
    most = max(1.0, LARGEST_SHARE * fraction * rows.total())
    held: list[int] = []
    for key in sorted(members, key=lambda key: (rows[key] > most, key))[:-1]:
        if len(held) >= wanted:
            break
        held += members[key]
    out = np.zeros(len(items), bool)
    out[held] = True
    return Selection(items, np.flatnonzero(~out)), Selection(items, np.flatnonzero(out))


def prompts(items: ItemSet[Item]) -> Iterator[bytes]:
    """Yield a key for the prompt of each example's row, or of each group; equal keys mean equal prompts."""
    return (key for key, _ in _prompts(items))


def _prompts(items: ItemSet[Item]) -> Iterator[tuple[bytes, bool]]:
    """Yield for every item the key of its row's prompt, and whether it is the row's first."""
    if isinstance(items, StoredGroups):
        yield from ((key, True) for key in items.prompt_keys())
        return
    row: Origin | None = None
    key = b""
    for i in range(len(items)):
        example = items[i]
        assert isinstance(example, Example)  # noqa: S101  (groups are stored as above)
        begins = example.origin is None or example.origin != row  # a row's prompt is that of its first example
        if begins:
            tokens = np.asarray(example.input_ids[: example.spans[0].start], np.int32)
            key, row = hashlib.sha256(tokens.tobytes()).digest(), example.origin
        yield key, begins
