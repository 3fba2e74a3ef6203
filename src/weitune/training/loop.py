"""The training loop.

One step: take its items (examples, or groups of preferences) from the plan, split this device's share into
micro-batches, add up their gradients, divide once by what the whole step has over all devices, clip, and let the
optimizer move. The objective says what the loss is: of examples, the mean over their supervised tokens, however the
step was split:

    loss = Σ weight · cross entropy / Σ weight        (both sums over every example of the step, on every device)
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from weitune.data.layout import Layout
from weitune.data.preference.values import Item
from weitune.data.prepare.holdout import Items
from weitune.data.schedule import Plan
from weitune.errors import NonFiniteError
from weitune.forecast.device_memory import MemoryPlan, peak_bytes
from weitune.model.own_dropout import turn_off_own_noise
from weitune.recipe.schema import Train
from weitune.training.objective.step_objective import SUPERVISED, Objective
from weitune.training.optim import learning_rate, seed_step, set_learning_rate
from weitune.training.passes import Passes

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimizer step did; ``step`` counts from 1."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens of the step's examples, each counted as often as it occurs."""
    computed_tokens: int
    """Tokens that this device computed, shared prefixes once."""
    supervised_tokens: int
    tokens_per_second: float
    step_seconds: float
    memory_bytes: int
    """Peak memory of this process so far."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the objective tells besides the loss, by name."""


class Watcher(Protocol):
    """Called by the loop after each step."""

    def stepped(self, record: StepRecord) -> bool:
        """Handle a finished step; return False to end the loop here."""

    def failed(self, record: StepRecord) -> None:
        """Handle a step whose loss or gradient is not finite; the weights have not changed."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Everything that stays the same from step to step."""

    model: nn.Module
    """A SupervisedModel, perhaps wrapped for data parallelism."""
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    passes: Passes
    examples: Items
    plan: Plan
    layout: Layout
    train: Train
    memory: MemoryPlan
    """The resolved values of ``train.micro_tokens`` and ``train.recompute``."""
    objective: Objective = SUPERVISED
    sharded: bool = False
    """Whether the base is divided among the processes, so that they must make their passes together."""

    def run(self, start: int, watcher: Watcher) -> None:
        """Run the steps from ``start`` (steps done so far) to the plan's end, or until ``watcher`` ends the loop.

        Raises NonFiniteError, before the weights change, if a loss or gradient is not finite.
        """
        self.model.train()
        turn_off_own_noise(self.model)
        for step in range(start, self.plan.steps):
            began = time.perf_counter()
            items = [self.examples[int(i)] for i in self.plan.step(step)]
            rate = learning_rate(step, self.plan.steps, self.train)
            seed_step(self.train.seed, step, self.accelerator.process_index)
            loss, computed, figures = self._accumulate(step, items)
            norm = self.passes.clip(self.train.max_grad_norm)
            seconds = time.perf_counter() - began
            tokens = sum(item.tokens for item in items)
            record = StepRecord(
                step=step + 1,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=tokens,
                computed_tokens=computed,
                supervised_tokens=sum(item.supervised for item in items),
                tokens_per_second=tokens / seconds,
                step_seconds=seconds,
                memory_bytes=peak_bytes(self.accelerator.device),
                figures=figures,
            )
            if not (math.isfinite(loss) and math.isfinite(norm)):
                watcher.failed(record)
                origins = ", ".join(str(item.origin) for item in items if item.origin)
                raise NonFiniteError("training.loop.not_finite", step=step + 1, loss=loss, norm=norm, origins=origins)
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
            self.passes.zero_grad()
            if not watcher.stepped(record):
                return

    def pass_count(self, own: int) -> int:
        """Return how many passes this process makes if its examples need ``own``; all processes must ask together."""
        if not self.sharded:
            return own
        return int(self.accelerator.gather(torch.tensor([own], device=self.accelerator.device)).max())

    def _accumulate(self, step: int, items: Sequence[Item]) -> tuple[float, int, Mapping[str, float]]:
        """Add up the gradients of a step on this device.

        Return the step's loss, the tokens computed here, and the figures of the objective.
        """
        world = self.accelerator.num_processes
        objective = self.objective.begin(step, items)
        mine = self.layout.share(items, world)[self.accelerator.process_index] if world > 1 else items
        batches = self.layout.split(mine, self.memory.micro_tokens)
        own = len(batches)
        # A device without items still takes part in the reduction of gradients, with weight 0.
        batches += [list(items[:1])] * (max(self.pass_count(own), 1) - own)
        total = torch.zeros((), dtype=torch.float64)
        computed = 0
        for k, batch in enumerate(batches):
            laid = objective.weighed(self.layout.lay(batch), batch)
            computed += len(laid)
            result = self.passes.run(laid, objective.divisor, counted=k < own, last=k == len(batches) - 1)
            total += objective.took(batch if k < own else (), result)
        if world > 1:
            total = self.accelerator.reduce(total.to(self.accelerator.device), reduction="sum")
        return float(total) / objective.divisor, computed, objective.figures()
