"""The layouts of a step's examples, or groups, for a forward pass, with one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weitune.data.pack import PackedBatch, pack
from weitune.data.pack_groups import pack_groups, pad_groups, split_groups_by_length
from weitune.data.pad import PaddedBatch, pad, split_by_length
from weitune.data.partition import share, share_groups, split, split_groups


@dataclass(frozen=True, slots=True)
class Layout:
    """How the items of a step are divided, and how a micro-batch of them is laid out."""

    split: Callable[[Sequence[Any], int], list[list[Any]]]
    """Into micro-batches of at most so many tokens"""
    lay: Callable[[Sequence[Any]], PackedBatch | PaddedBatch]
    share: Callable[[Sequence[Any], int], list[list[Any]]] = share
    """Among so many devices"""


SHARED = Layout(split, pack)
"""One row in which every distinct prefix token occurs once."""

SEPARATE = Layout(split_by_length, pad)
"""One conversation a row, padded: for models that cannot share."""

SHARED_GROUPS = Layout(split_groups, pack_groups, share_groups)
"""The answers of whole groups in one row, as in :data:`SHARED`."""

SEPARATE_GROUPS = Layout(split_groups_by_length, pad_groups, share_groups)
"""The answers of whole groups, one a row, as in :data:`SEPARATE`."""


def of_groups(layout: Layout) -> Layout:
    """Return the layout of groups that goes with a ``layout`` of examples."""
    return SEPARATE_GROUPS if layout is SEPARATE else SHARED_GROUPS
