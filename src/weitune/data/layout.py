"""The layouts of a step's examples, or groups, for a forward pass, with one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weitune.data.pack import PackedBatch, pack
from weitune.data.pack_groups import pack_groups, pad_groups, split_groups_by_length
from weitune.data.pad import PaddedBatch, pad, split_by_length
from weitune.data.partition import share, share_groups, split, split_groups
from weitune.data.preference.values import examples_in


@dataclass(frozen=True, slots=True)
class Layout:
    """How the items of a step are divided, and how a micro-batch of them is laid out."""

    split: Callable[[Sequence[Any], int], list[list[Any]]]
    """Into micro-batches of at most so many tokens"""
    lay: Callable[[Sequence[Any]], PackedBatch | PaddedBatch]
    share: Callable[[Sequence[Any], int], list[list[Any]]] = share
    """Among so many devices"""

    def apart(self, tokens: int) -> Layout:
        """Return this layout with items of more than ``tokens`` in micro-batches of their own."""

        def split(items: Sequence[Any], micro_tokens: int) -> list[list[Any]]:
            sides: tuple[list[Any], list[Any]] = [], []
            for item in items:
                sides[max(len(example.inputs) for example in examples_in([item])) > tokens].append(item)
            return [batch for side in sides if side for batch in self.split(side, micro_tokens)]

        return replace(self, split=split)


SHARED = Layout(split, pack)
"""One row in which every distinct prefix token occurs once."""

SEPARATE = Layout(split_by_length, pad)
"""One conversation a row, padded: for models that cannot share."""

SHARED_GROUPS = Layout(split_groups, pack_groups, share_groups)
"""The answers of whole groups in one row, as in :data:`SHARED`."""

SEPARATE_GROUPS = Layout(split_groups_by_length, pad_groups, share_groups)
"""The answers of whole groups, one a row, as in :data:`SEPARATE`."""
