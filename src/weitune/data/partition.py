"""Divide a step's examples: into micro-batches that each fit one forward pass (:func:`split`), and among devices.

Examples are sorted first, so that those with a common prefix are neighbours and compute it once. Only the cuts between
neighbours are chosen, such that the largest part is as small as it can be: it decides how much memory and time a step
takes. Cost: O(tokens of the step), and a bisection over the size of the largest part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from weitune.data.conversation import Example


def split(examples: Sequence[Example], micro_tokens: int) -> list[list[Example]]:
    """Split a step's examples into micro-batches of at most ``micro_tokens`` distinct prefix tokens each.

    There are as few as possible, and the largest is as small as possible. A micro-batch holds at least one example,
    however long that is. Every example is in exactly one, and the order of ``examples`` makes no difference.
    """
    if not examples:
        return []
    line = _sorted(examples)
    return line.divide(len(line.starts(micro_tokens)), most=micro_tokens)


def share(examples: Sequence[Example], devices: int) -> list[list[Example]]:
    """Divide a step's examples among ``devices`` such that the largest share has as few tokens as possible.

    A prefix that two devices need counts for both, so that examples with a common prefix stay together where it pays.
    A share may be empty.
    """
    line = _sorted(examples)
    shares = line.divide(devices, most=line.whole[0] + sum(line.new))
    return shares + [[] for _ in range(devices - len(shares))]


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of ``a`` and ``b``, in tokens."""
    for depth, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return depth
    return min(len(a), len(b))


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Examples in sorted order, to be cut into parts."""

    examples: list[Example]
    whole: list[int]
    """Tokens that an example takes at the beginning of a part."""
    new: list[int]
    """Tokens that an example adds to those before it, from the second on."""

    def starts(self, most: int) -> list[int]:
        """Return where parts begin if each takes examples until ``most`` tokens would be exceeded."""
        starts, tokens = [0], self.whole[0]
        for k, added in enumerate(self.new, 1):
            tokens += added
            if tokens > most:
                starts.append(k)
                tokens = self.whole[k]
        return starts

    def divide(self, parts: int, *, most: int) -> list[list[Example]]:
        """Cut into at most ``parts`` parts whose largest is as small as possible; ``most`` tokens a part must do."""
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self.starts(middle)) <= parts else (middle + 1, high)
        starts = self.starts(low)
        return [self.examples[start:end] for start, end in pairwise([*starts, len(self.examples)])]


def _sorted(examples: Sequence[Example]) -> _Sorted:
    ordered = sorted(examples, key=lambda example: (example.input_ids, example.spans))
    new = [len(b.inputs) - shared_length(a.inputs, b.inputs) for a, b in pairwise(ordered)]
    return _Sorted(ordered, [len(example.inputs) for example in ordered], new)
