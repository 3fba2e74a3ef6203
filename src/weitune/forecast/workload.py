"""The sizes of a run's passes: its steps laid out as training lays them out, without a model.

In a long run only some steps of the first epoch, evenly spaced, are laid out; others may have a larger pass.
Cost: a few milliseconds a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weitune.data.layout import Layout
from weitune.data.partition import distinct_tokens
from weitune.data.preference.values import Group, examples_in
from weitune.data.prepare.holdout import Items
from weitune.data.schedule import Plan
from weitune.forecast.memory_estimate import MOST_TOKENS_ON_CPU, SHORT_TOKENS_ON_CPU, PassSize

_SAMPLED_STEPS = 200
_FEW_STEPS, _LITTLE_MORE = 8, 1.02
"""How many steps are tried both ways, and by what factor short passes may compute more tokens."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The passes of some steps of a run."""

    steps: Sequence[Sequence[PassSize]]
    """The passes of each step."""
    tokens: int
    """Tokens of their examples, or of the answers of their groups, each counted as often as it occurs."""

    @classmethod
    def lay_out(
        cls,
        items: Items,
        plan: Plan,
        layout: Layout,
        micro_tokens: int,
        steps: Sequence[int] | None = None,
        processes: int = 1,
    ) -> Workload:
        """Lay ``steps`` (from 0), or some of the first epoch, out as passes of at most ``micro_tokens``.

        Each step's examples or groups are divided among ``processes`` as training divides them.
        """
        laid_out, tokens = [], 0
        for step in _spaced(plan, _SAMPLED_STEPS) if steps is None else steps:
            batch = [items[int(i)] for i in plan.step(step)]
            tokens += sum(item.tokens for item in batch)
            passes = []
            shares = layout.share(batch, processes) if processes > 1 else [batch]
            for part in (part for mine in shares for part in layout.split(mine, micro_tokens)):
                laid = layout.lay(part)
                rows = examples_in(part)
                longest = max(len(example.inputs) for example in rows)
                undivided = max((distinct_tokens(item.answers) for item in part if isinstance(item, Group)), default=0)
                predicting = len(laid.rows) if laid.answers is not None else len(np.unique(laid.rows))
                passes.append(PassSize(len(laid), predicting, longest, len(rows), undivided))
            laid_out.append(passes)
        return cls(laid_out, tokens)

    @property
    def largest(self) -> PassSize:
        """A pass as large as the largest one in every respect."""
        sizes = [size for step in self.steps for size in step]
        return PassSize(
            max(size.tokens for size in sizes),
            max(size.predictions for size in sizes),
            max(size.longest for size in sizes),
            max(size.rows for size in sizes),
            max(size.undivided for size in sizes),
        )

    @property
    def computed_tokens(self) -> int:
        """Tokens that the passes compute, shared prefixes once."""
        return sum(size.tokens for step in self.steps for size in step)

    @property
    def saved_by_sharing(self) -> float:
        """Share of the tokens that are not computed, since they are in a shared prefix or predict nothing."""
        return 1 - self.computed_tokens / self.tokens


def most_tokens_on_cpu(items: Items, plan: Plan, layout: Layout, processes: int = 1) -> int:
    """Return how many tokens a pass on a CPU may have if memory allows.

    Short passes take less memory. They are chosen if they compute at most 2 % more tokens, in some steps of the first
    epoch: what the examples of a step share is computed in each pass.
    """
    steps = _spaced(plan, _FEW_STEPS)
    short, long = (
        Workload.lay_out(items, plan, layout, tokens, steps, processes).computed_tokens
        for tokens in (SHORT_TOKENS_ON_CPU, MOST_TOKENS_ON_CPU)
    )
    return SHORT_TOKENS_ON_CPU if short <= _LITTLE_MORE * long else MOST_TOKENS_ON_CPU


def _spaced(plan: Plan, count: int) -> list[int]:
    """Return ``count`` steps of the first epoch, evenly spaced, or all if it has fewer."""
    last = min(plan.steps, plan.steps_per_epoch) - 1
    return list(map(int, np.unique(np.linspace(0, last, count).astype(int))))
