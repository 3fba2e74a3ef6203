"""Which examples make optimizer step k: a pure function of (number of examples, batch size, seed).

Every epoch is one permutation of all examples, cut into steps of ``batch_size``; the last step of an epoch takes what
is left. The permutation of an epoch depends on (seed, epoch) alone, so a run's position is one integer, the step, and
one device or eight see the same steps.

    epoch 0: [7 2 9 0][4 1 8 3][6 5]   epoch 1: [3 9 …]      steps 0 1 2 | 3 …

Cost: O(n log n) in the examples, once an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


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
        return -(-self.examples // self.batch_size)

    @property
    def steps(self) -> int:
        whole = self.steps_per_epoch * self.epochs
        return whole if self.max_steps is None else min(whole, self.max_steps)

    @property
    def used(self) -> int:
        """How many of the examples are in its steps at all: fewer than all only if it ends within the first epoch."""
        return min(self.examples, self.steps * self.batch_size)

    def step(self, k: int) -> npt.NDArray[np.int64]:
        """Return the indices of the examples of step ``k`` (from 0), shape (at most ``batch_size``,)."""
        if not 0 <= k < self.steps:
            raise IndexError(f"step {k} of a plan with {self.steps} steps")
        epoch, within = divmod(k, self.steps_per_epoch)
        return permutation(self.examples, self.seed, epoch)[within * self.batch_size : (within + 1) * self.batch_size]


@lru_cache(maxsize=2)
def permutation(examples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the permutation of an epoch, (examples,): the order of random words.

    NumPy guarantees the stream of a bit generator across versions, but not the result of ``Generator.permutation``.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(examples)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order
