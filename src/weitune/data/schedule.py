"""Which examples make optimizer step k: a pure function of (number of examples, batch size, seed).

Every epoch is one permutation of all examples, cut into steps of ``batch_size``; the last step of an epoch takes what
is left. The permutation of an epoch depends on (seed, epoch) alone, so a run's position is one integer, the step, and
one device or eight see the same steps.

    epoch 0: [7 2 9 0][4 1 8 3][6 5]   epoch 1: [3 9 …]      steps 0 1 2 | 3 …

A step that does not fit one forward pass is split into micro-batches (:func:`split`). Examples are sorted first, so
those that begin alike meet in one micro-batch and share their beginning there; micro-batches are alike in size, for the
largest decides how much memory a step takes. Cost: O(n log n) of an epoch's examples, once an epoch; a step's split is
O(tokens of the step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Example


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a run over ``examples`` examples."""

    examples: int
    batch_size: int
    epochs: int
    seed: int
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return -(-self.examples // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        whole = self.steps_per_epoch * self.epochs
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def step(self, k: int) -> npt.NDArray[np.int64]:
        """Return the indices of the examples of step ``k`` (from 0), shape (at most ``batch_size``,)."""
        if not 0 <= k < self.steps:
            raise IndexError(f"step {k} of a plan with {self.steps} steps")
        epoch, within = divmod(k, self.steps_per_epoch)
        return _order(self.examples, self.seed, epoch)[within * self.batch_size : (within + 1) * self.batch_size]


@lru_cache(maxsize=2)
def _order(examples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the permutation of an epoch: the order of random words.

    NumPy promises the words of a bit generator for ever, but not what ``Generator.permutation`` makes of them.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(examples)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens ``a`` and ``b`` have in common at their beginning."""
    for depth, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return depth
    return min(len(a), len(b))


def split(examples: Sequence[Example], micro_tokens: int) -> list[list[Example]]:
    """Split a step's examples into micro-batches of at most ``micro_tokens`` distinct prefix tokens each.

    There are as few as can be, and the one with most tokens has as few as can be. A micro-batch always holds at least
    one example, however long it is. Every example is in exactly one micro-batch, and the split does not depend on the
    order of ``examples``.
    """
    if not examples:
        return []
    line = _Line.of(examples)
    return line.divide(len(line.starts(micro_tokens)), most=micro_tokens)


def share(examples: Sequence[Example], devices: int) -> list[list[Example]]:
    """Divide a step's examples among ``devices`` so that the one with most to compute has as little as possible.

    Examples that begin alike stay neighbours; where a device begins among them, it computes their beginning anew, which
    is counted: groups are kept together where that pays. A device may get none.
    """
    line = _Line.of(examples)
    shares = line.divide(devices, most=line.whole[0] + sum(line.new))
    return shares + [[] for _ in range(devices - len(shares))]


@dataclass(frozen=True, slots=True)
class _Line:
    """Examples side by side in sorted order, to be cut into parts."""

    examples: list[Example]
    whole: list[int]
    """Tokens of an example where a part begins with it."""
    new: list[int]
    """Tokens that an example adds to the one before, from the second on."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> _Line:
        ordered = sorted(examples, key=lambda example: (example.input_ids, example.spans))
        new = [len(b.inputs) - shared_length(a.inputs, b.inputs) for a, b in pairwise(ordered)]
        return cls(ordered, [len(example.inputs) for example in ordered], new)

    def starts(self, most: int) -> list[int]:
        """Return where parts begin if none may have more than ``most`` tokens, but for a single example."""
        starts, load = [0], self.whole[0]
        for k, cost in enumerate(self.new, 1):
            load += cost
            if load > most:
                starts.append(k)
                load = self.whole[k]
        return starts

    def divide(self, parts: int, *, most: int) -> list[list[Example]]:
        """Cut into at most ``parts`` so that the largest is smallest; with ``most`` tokens a part it must be possible.

        The cut is the best there is in this order, found by bisection over the largest part.
        """
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self.starts(middle)) <= parts else (middle + 1, high)
        starts = self.starts(low)
        return [self.examples[start:end] for start, end in pairwise([*starts, len(self.examples)])]
