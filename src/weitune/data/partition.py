"""Divide a step's examples, or its groups: into micro-batches that each fit one forward pass, and among devices.

Examples are sorted first, so that those with a common prefix are neighbours and compute it once. Only the cuts between
neighbours are chosen, such that the largest part is as small as it can be: it decides how much memory and time a step
takes. Groups are never divided. Cost: O(tokens of the step), and a bisection over the size of the largest part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

from weitune.data.conversation import Example
from weitune.data.preference.values import Group

T = TypeVar("T")


def split(examples: Sequence[Example], micro_tokens: int) -> list[list[Example]]:
    """Split a step's examples into micro-batches of at most ``micro_tokens`` distinct prefix tokens each.

    There are as few as possible, and the largest is as small as possible. A micro-batch holds at least one example,
    however long that is. Every example is in exactly one, and the order of ``examples`` makes no difference.
    """
    return _sorted(examples).micro_batches(micro_tokens)


def split_groups(groups: Sequence[Group], micro_tokens: int) -> list[list[Group]]:
    """Split a step's groups into micro-batches as :func:`split` does examples. A group is never divided.

    What groups share is counted between neighbours only, so that a micro-batch may have fewer distinct tokens.
    """
    return _sorted_groups(groups).micro_batches(micro_tokens)


def share(examples: Sequence[Example], devices: int) -> list[list[Example]]:
    """Divide a step's examples among ``devices`` such that the largest share has as few tokens as possible.

    A prefix that two devices need counts for both, so that examples with a common prefix stay together where it pays.
    A share may be empty.
    """
    return _sorted(examples).shares(devices)


def share_groups(groups: Sequence[Group], devices: int) -> list[list[Group]]:
    """Divide a step's groups among ``devices`` as :func:`share` does examples. A group is never divided."""
    return _sorted_groups(groups).shares(devices)


def distinct_tokens(examples: Iterable[Example]) -> int:
    """Return the number of tokens in the prefix tree of ``examples``: what a pass over them computes."""
    ordered = sorted(example.inputs for example in examples)
    return sum(len(ids) - shared_length(before, ids) for before, ids in pairwise([(), *ordered]))


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of ``a`` and ``b``, in tokens."""
    for depth, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return depth
    return min(len(a), len(b))


@dataclass(frozen=True, slots=True)
class _Sorted(Generic[T]):
    """Examples or groups in sorted order, to be cut into parts."""

    items: list[T]
    whole: list[int]
    """Tokens that an item takes at the beginning of a part."""
    new: list[int]
    """Tokens that an item adds to those before it, from the second on."""

    def micro_batches(self, micro_tokens: int) -> list[list[T]]:
        if not self.items:
            return []
        return self._divide(len(self._starts(micro_tokens)), most=micro_tokens)

    def shares(self, devices: int) -> list[list[T]]:
        if not self.items:
            return [[] for _ in range(devices)]
        parts = self._divide(devices, most=self.whole[0] + sum(self.new))
        return parts + [[] for _ in range(devices - len(parts))]

    def _starts(self, most: int) -> list[int]:
        """Return where parts begin if each takes items until ``most`` tokens would be exceeded."""
        starts, tokens = [0], self.whole[0]
        for k, added in enumerate(self.new, 1):
            tokens += added
            if tokens > most:
                starts.append(k)
                tokens = self.whole[k]
        return starts

    def _divide(self, parts: int, *, most: int) -> list[list[T]]:
        """Cut into at most ``parts`` parts whose largest is as small as possible; ``most`` tokens a part must do."""
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self._starts(middle)) <= parts else (middle + 1, high)
        starts = self._starts(low)
        return [self.items[start:end] for start, end in pairwise([*starts, len(self.items)])]


def _by_tokens(example: Example) -> tuple[Any, ...]:
    return example.input_ids, example.spans


def _sorted(examples: Sequence[Example]) -> _Sorted[Example]:
    ordered = sorted(examples, key=_by_tokens)
    new = [len(b.inputs) - shared_length(a.inputs, b.inputs) for a, b in pairwise(ordered)]
    return _Sorted(ordered, [len(example.inputs) for example in ordered], new)


def _sorted_groups(groups: Sequence[Group]) -> _Sorted[Group]:
    ordered = sorted(groups, key=Group.sort_key)
    whole = [distinct_tokens(group.answers) for group in ordered]
    together = [distinct_tokens((*a.answers, *b.answers)) for a, b in pairwise(ordered)]
    return _Sorted(ordered, whole, [both - first for both, first in zip(together, whole, strict=False)])
