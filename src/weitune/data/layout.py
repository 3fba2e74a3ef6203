"""The two layouts of a step's examples for a forward pass, with one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weitune.data.conversation import Example
from weitune.data.pack import PackedBatch, pack
from weitune.data.pad import PaddedBatch, pad, split_by_length
from weitune.data.partition import split


@dataclass(frozen=True, slots=True)
class Layout:
    """How examples are split into micro-batches of at most so many tokens, and how a micro-batch is laid out."""

    split: Callable[[Sequence[Example], int], list[list[Example]]]
    lay: Callable[[Sequence[Example]], PackedBatch | PaddedBatch]


SHARED = Layout(split, pack)
"""One row in which every distinct prefix token occurs once."""

SEPARATE = Layout(split_by_length, pad)
"""One conversation a row, padded: for models that cannot share."""
