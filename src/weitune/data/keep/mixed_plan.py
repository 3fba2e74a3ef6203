"""A run's steps with kept examples among them: still a pure function of the recipe and the lengths of the examples.

Each step of the run's own :class:`.Plan` gets whole kept examples until these have their share of the tokens that are
learned, counted from the beginning of the run:

    own tokens     120   80  100   share 0.1: a ninth of them, 13.3, 22.2, 33.3 tokens so far
    kept           12     –   20   an example is added while at least half of it is due

Kept examples come in an order of their own; when all were used, they come again in another order.
Numbers from ``examples`` on stand for kept examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from weitune.data.schedule import Plan, permutation

Ints = npt.NDArray[np.int64]
_KEPT_ORDERS = 1 << 32
"""Seeds of the orders of kept examples begin here, far from those of epochs."""


@dataclass(frozen=True, slots=True)
class KeptUse:
    """What the steps of a run learn, of its own examples and of kept ones."""

    examples: int
    """Different kept examples."""
    tokens: int
    """Learned tokens of kept examples, each time that they come."""
    own_tokens: int

    @property
    def share(self) -> float:
        """The share of all learned tokens that kept examples have."""
        return self.tokens / (self.tokens + self.own_tokens)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MixedPlan(Plan):
    """The steps of ``plan`` with kept examples added."""

    learned: npt.NDArray[np.int32]
    """(examples,) learned tokens of every own example."""
    kept_learned: npt.NDArray[np.int32]
    """(kept,) learned tokens of every kept example."""
    share: float
    """The share of all learned tokens that kept examples have, from 0 to 1, both excluded."""
    _epochs: dict[int, list[Ints]] = field(default_factory=dict, init=False, repr=False)
    _begins: dict[int, tuple[float, int]] = field(default_factory=lambda: {0: (0.0, 0)}, init=False, repr=False)
    """For each epoch up to the first that is not known yet: learned tokens that are due, and kept examples used."""

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

    def use(self) -> KeptUse:
        """Return what all steps learn. Cost: every epoch is laid out."""
        numbers = np.concatenate([self.step(k) for k in range(self.steps)])
        own, kept = numbers[numbers < self.examples], numbers[numbers >= self.examples] - self.examples
        return KeptUse(len(np.unique(kept)), int(self.kept_learned[kept].sum()), int(self.learned[own].sum()))

    def _kept(self, epoch: int) -> list[Ints]:
        """Return the kept examples of every step of an epoch, from 0."""
        for earlier in range(max(self._begins), epoch):
            self._added(earlier)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._added(epoch)
        return self._epochs[epoch]

    def _added(self, epoch: int) -> list[Ints]:
        due, used = self._begins[epoch]
        order = self._order(used)
        following = next(order)
        whole = permutation(self.examples, self.seed, epoch)
        steps: list[Ints] = []
        for start in range(0, self.examples, self.batch_size):
            due += self.learned[whole[start : start + self.batch_size]].sum() * self.share / (1 - self.share)
            added = []
            while due >= self.kept_learned[following] / 2:
                due -= int(self.kept_learned[following])
                added.append(following)
                following = next(order)
            steps.append(np.asarray(added, dtype=np.int64))
            used += len(added)
        self._begins[epoch + 1] = (due, used)
        return steps

    def _order(self, used: int) -> Iterator[int]:
        """Yield kept examples without end, after ``used`` of them."""
        turn, within = divmod(used, len(self.kept_learned))
        for following in count(turn):
            yield from permutation(len(self.kept_learned), self.seed, _KEPT_ORDERS + following)[within:].tolist()
            within = 0


def tokens_due(learned: int, share: float) -> int:
    """Return how many learned tokens kept examples have beside ``learned`` own ones."""
    return round(learned * share / (1 - share))
