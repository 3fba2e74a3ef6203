"""Trials of one model in one process: it is loaded once, and every trial begins with a fresh adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from weitune.data.prepare.holdout import Selection
from weitune.data.schedule import Plan, permutation
from weitune.errors import NonFiniteError
from weitune.evaluate.loss import MICRO_TOKENS, measure_loss
from weitune.forecast.device_memory import MemoryPlan
from weitune.model.fast.attention import use_own_attention
from weitune.model.load.weights import LoadedModel
from weitune.model.lora.adapter_init import EVA_STEPS
from weitune.model.lora.saved_modules import original_modules
from weitune.progress import Progress
from weitune.recipe.schema import Recipe
from weitune.training.build import make_loop, make_trainable
from weitune.training.distributed.processes import make_accelerator
from weitune.training.inputs import RunInputs
from weitune.training.loop import Loop, StepRecord
from weitune.training.prepared_run import computed_with
from weitune.training.signals import StopRequest
from weitune.training.trainable import Trainable
from weitune.tune.search import Trial

_ENDLESS = 1 << 20
"""Epochs of a trial's plan: its steps end it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial came to."""

    trial: Trial
    loss: float
    """on the held-out rows, in nats; infinite if that, or a loss in training, is not finite"""
    seconds: float
    losses: tuple[float, ...]
    """of its steps"""


@dataclass(slots=True)
class _Watcher:
    """Keeps the losses of a trial, and ends it when a stop is asked for."""

    stop: StopRequest
    progress: Progress | None
    steps: int
    losses: list[float] = field(default_factory=list)

    def stepped(self, record: StepRecord) -> bool:
        self.losses.append(record.loss)
        if self.progress is not None:
            self.progress(record.step, self.steps)
        return not self.stop

    def failed(self, record: StepRecord) -> None:
        """The loop raises by itself."""


class Trials:
    """Makes trials of a recipe on a loaded model."""

    def __init__(self, loaded: LoadedModel, inputs: RunInputs) -> None:
        self._loaded, self._inputs = loaded, inputs
        self._accelerator = make_accelerator(loaded.device)
        self._memory: MemoryPlan | None = None
        self._trainable: Trainable | None = None
        self._rank: int | None = None
        self._start: Mapping[str, Tensor] = {}

    @property
    def rows(self) -> int:
        """The number of rows to learn from."""
        return len(self._inputs.examples)

    def settle(self, r: int | None, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Resolve, for adapters up to rank ``r``, how all trials are computed; return it as a run records it.

        ``recorded`` is what the search that goes on recorded: a step is divided into passes as it was.
        """
        recipe, train = self._inputs.recipe, self._inputs.recipe.train
        trainable = self._fresh(recipe if recipe.adapter is None else _with_rank(recipe, r))
        self._memory = trainable.memory_plan(
            train,
            longest=self._inputs.longest,
            micro_tokens=recorded.get("micro_tokens") if train.micro_tokens == "auto" else None,
            may_pack=recorded.get("packed", True),
            most_on_cpu=self._inputs.most_on_cpu(trainable.capabilities),
        )
        return computed_with(trainable, self._memory)

    def run(self, trial: Trial, stop: StopRequest, progress: Progress | None = None) -> Outcome | None:
        """Train as ``trial`` says and measure the loss on the held-out rows; None if a stop was asked for meanwhile."""
        began = time.perf_counter()
        recipe = trial.applied(self._inputs.recipe)
        trainable = self._fresh(recipe)
        loop = self._loop(trainable, recipe, trial)
        watcher = _Watcher(stop, progress, trial.steps)
        try:
            loop.run(0, watcher)
        except NonFiniteError:
            loop.passes.zero_grad()
            return Outcome(trial, math.inf, time.perf_counter() - began, tuple(watcher.losses))
        if len(watcher.losses) < trial.steps:
            return None
        loss = self._held_out_loss(loop)
        loss = loss if math.isfinite(loss) else math.inf
        return Outcome(trial, loss, time.perf_counter() - began, tuple(watcher.losses))

    def _loop(self, trainable: Trainable, recipe: Recipe, trial: Trial) -> Loop:
        inputs, train = self._inputs, recipe.train
        rows = permutation(len(inputs.examples), train.seed, 0)[: trial.rows]
        plan = Plan(trial.rows, train.batch_size, _ENDLESS, train.seed, trial.steps)
        return make_loop(
            trainable,
            train,
            Selection(inputs.examples, rows),
            plan,
            accelerator=self._accelerator,
            memory=self._memory,
            plus_ratio=recipe.adapter.plus_ratio if recipe.adapter else 1.0,
            longest=inputs.longest,
        )

    def _held_out_loss(self, loop: Loop) -> float:
        held = self._inputs.validation
        assert held is not None  # noqa: S101  (tune sees to it)
        examples = [held[i] for i in range(len(held))]
        micro_tokens = min(loop.memory.micro_tokens, MICRO_TOKENS)
        model = self._accelerator.unwrap_model(loop.model)
        return measure_loss(model, examples, loop.layout, micro_tokens, self._accelerator.device).mean

    def _fresh(self, recipe: Recipe) -> Trainable:
        """Return the model with an adapter as it starts, of the rank that ``recipe`` says."""
        rank = recipe.adapter.r if recipe.adapter else None
        if self._trainable is None or rank != self._rank:
            self._attach(recipe)
            self._rank = rank
        self._restore()
        assert self._trainable is not None  # noqa: S101  (for mypy)
        return self._trainable

    def _restore(self) -> None:
        """Give everything that is trained the values that it starts with."""
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(self._start[name])
                parameter.grad = None

    def _attach(self, recipe: Recipe) -> None:
        if self._trainable is not None:
            adapted: Any = self._trainable.trained.model
            originals = original_modules(adapted)
            self._loaded = replace(self._loaded, model=adapted.unload())
            for name, module in originals.items():  # PEFT leaves the trained copies in their places
                self._loaded.model.set_submodule(name, module)
            self._loaded.model.requires_grad_(False)
            use_own_attention(self._loaded.model)  # as it was when it had just been loaded
        inputs = self._inputs
        steps = (inputs.examples_of(step) for step in range(min(EVA_STEPS, inputs.plan.steps)))
        self._trainable = make_trainable(
            self._loaded, recipe.adapter, seed=recipe.train.seed, base=recipe.model, steps=steps
        )
        self._start = {name: parameter.detach().clone() for name, parameter in self._trained().items()}

    def _trained(self) -> dict[str, Any]:
        assert self._trainable is not None  # noqa: S101  (for mypy)
        named = self._trainable.trained.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}


def _with_rank(recipe: Recipe, r: int | None) -> Recipe:
    assert recipe.adapter is not None  # noqa: S101  (for mypy)
    return recipe.model_copy(update={"lora": recipe.adapter.model_copy(update={"r": r})})
