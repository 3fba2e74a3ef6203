"""A run's steps with kept examples among them: still a pure function of the recipe and the lengths of the examples.

Each step of the run's own :class:`.Plan` gets whole kept examples until these have their share of the tokens that are
learned, counted from the beginning of the epoch:

    own tokens     120   80  100   share 0.1: a ninth of them, 13.3, 22.2, 33.3 tokens so far
    kept           12     –   20   an example is added while at least half of it is due

Kept examples come in an order of their own for each epoch; when all were used, they come again in another order.
Numbers from ``examples`` on stand for kept examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from weitune.data.schedule import Plan, permutation

Ints = npt.NDArray[np.int64]
_KEPT_ORDERS = 1 << 32
"""Seeds of the orders of kept examples begin here, far from those of epochs."""
_ROUNDS = 1 << 20
"""More than the times that all kept examples are used in an epoch."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MixedPlan(Plan):
    """The steps of ``plan`` with kept examples added."""

    learned: npt.NDArray[np.int32]
    """(examples,) learned tokens of every own example."""
    kept_learned: npt.NDArray[np.int32]
    """(kept,) learned tokens of every kept example."""
    share: float
    """The share of all learned tokens that kept examples have over an epoch, from 0 to 1, both excluded."""
    _epochs: dict[int, list[Ints]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def over(
        cls, plan: Plan, learned: npt.NDArray[np.int32], kept_learned: npt.NDArray[np.int32], share: float
    ) -> MixedPlan:
        """Return ``plan`` with kept examples added. Raises ValueError if there are none or they learn nothing."""
        if not len(kept_learned) or kept_learned.min() < 1:
            raise ValueError("every kept example needs something to learn")
        own = (plan.examples, plan.batch_size, plan.epochs, plan.seed, plan.max_steps)
        return cls(*own, learned=learned, kept_learned=kept_learned, share=share)

    def step(self, k: int) -> Ints:
        """Return the numbers of the examples of step ``k`` (from 0): the plan's own, then kept ones."""
        own = Plan.step(self, k)
        epoch, within = divmod(k, self.steps_per_epoch)
        return np.concatenate([own, self.examples + self._kept(epoch)[within]])

    def _kept(self, epoch: int) -> list[Ints]:
        """Return the kept examples of every step of an epoch, from 0."""
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = list(self._added(epoch))
        return self._epochs[epoch]

    def _added(self, epoch: int) -> Iterator[Ints]:
        order, due = self._order(epoch), 0.0
        following = next(order)
        whole = permutation(self.examples, self.seed, epoch)
        for start in range(0, self.examples, self.batch_size):
            due += self.learned[whole[start : start + self.batch_size]].sum() * self.share / (1 - self.share)
            added = []
            while due >= self.kept_learned[following] / 2:
                due -= int(self.kept_learned[following])
                added.append(following)
                following = next(order)
            yield np.asarray(added, dtype=np.int64)

    def _order(self, epoch: int) -> Iterator[int]:
        for around in range(_ROUNDS):
            yield from permutation(len(self.kept_learned), self.seed, _KEPT_ORDERS + epoch * _ROUNDS + around).tolist()
        raise ValueError("an epoch uses the kept examples too often")


def tokens_due(learned: int, share: float) -> int:
    """Return how many learned tokens kept examples have beside ``learned`` own ones."""
    return round(learned * share / (1 - share))
