"""Evaluation while a run trains: the loss on held-out rows, and sample answers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from weitune.data.conversation import Conversation, Turn
from weitune.data.preference.values import Group, Item
from weitune.data.prepare.holdout import ItemSet
from weitune.evaluate.evaluation_set import Question, first_questions
from weitune.evaluate.loss import MICRO_TOKENS, MeasuredLoss, measure_loss
from weitune.evaluate.samples import Sample, answer_samples
from weitune.files.paths import user_path
from weitune.generate.constrain.schema import JsonRule
from weitune.generate.constrain.schema_file import read_schema
from weitune.generate.engine import Engine
from weitune.model.storage.allocator import release_freed_memory, releasing_in_the_end
from weitune.progress import Progress
from weitune.recipe.schema import Recipe
from weitune.training.loop import Loop
from weitune.training.objective.held_out import measure_held_out
from weitune.training.objective.preference_objective import PreferenceObjective
from weitune.training.signals import StopRequest
from weitune.training.validation_history import Evaluation

if TYPE_CHECKING:
    from weitune.training.prepared_run import PreparedRun

SAMPLES = 3
"""Questions of the validation data that are asked at each evaluation, unless the recipe names some."""


class _StopAskedError(Exception):
    """Ends a measurement."""


class Validator:
    """Evaluates the model of a loop on examples that it does not learn from."""

    def __init__(
        self,
        loop: Loop,
        examples: ItemSet[Item] | None,
        engine: Engine | None,
        questions: Sequence[Question],
        sample_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Measure on ``examples``, if any; with an ``engine`` (the main process has one), answer ``questions``.

        With ``schema``, the answers are kept to it.
        """
        self._loop, self._engine, self._questions, self._sample_tokens = loop, engine, questions, sample_tokens
        self._schema = schema
        self._examples = [] if examples is None else [examples[i] for i in range(len(examples))]

    def due(self, step: int) -> bool:
        return step % self._loop.train.evaluate_every == 0 or step == self._loop.plan.steps

    def evaluate(self, step: int, stop: StopRequest, progress: Progress | None = None) -> Evaluation | None:
        """Evaluate the model after ``step`` steps; return None if a stop was asked for meanwhile.

        Every process of a run must call it at the same step. Parameters, generators and training mode stay as they are.
        """
        began = time.perf_counter()
        alone = self._loop.accelerator.num_processes == 1

        def watched(done: int, total: int | None) -> None:
            if stop and alone:  # several processes must do the same, so they finish
                raise _StopAskedError
            if progress is not None:
                progress(done, total)

        release_freed_memory()
        try:
            with releasing_in_the_end():
                measured, loss, figures = self._measure(watched)
                samples = self._answer_questions(self._engine) if self._engine else []
        except _StopAskedError:
            return None
        seconds = time.perf_counter() - began
        return Evaluation(step, loss, measured.perplexity, measured.weight, seconds, samples, figures=figures)

    def _answer_questions(self, engine: Engine) -> list[Sample]:
        return answer_samples(engine, self._questions, self._sample_tokens, self._schema)

    def _measure(self, progress: Progress) -> tuple[MeasuredLoss, float, Mapping[str, float]]:
        """Return the cross entropy of the examples, or of the liked answers, the loss, and figures of preferences."""
        objective = self._loop.objective
        if not self._examples:
            return MeasuredLoss(0.0, 0.0), math.nan, {}
        if isinstance(objective, PreferenceObjective):
            groups = [item for item in self._examples if isinstance(item, Group)]
            held = measure_held_out(objective, groups, progress)
            return held.liked, held.loss, held.figures
        measured = self._cross_entropy(progress)
        return measured, measured.mean, {}

    def _cross_entropy(self, progress: Progress) -> MeasuredLoss:
        loop, accelerator = self._loop, self._loop.accelerator
        world = accelerator.num_processes
        mine = loop.layout.share(self._examples, world)[accelerator.process_index] if world > 1 else self._examples
        model = accelerator.unwrap_model(loop.model)  # no reduction of gradients takes part in this
        micro_tokens = min(loop.memory.micro_tokens, MICRO_TOKENS)
        own = len(loop.layout.split(mine, micro_tokens))
        idle = [self._examples[:1]] * (loop.pass_count(own) - own)
        loss = measure_loss(model, mine, loop.layout, micro_tokens, accelerator.device, progress, idle)
        if world == 1:
            return loss
        sums = torch.tensor([loss.sum, loss.weight], dtype=torch.float64, device=accelerator.device)
        total, weight = accelerator.reduce(sums, reduction="sum").tolist()
        return MeasuredLoss(total, weight)


def sample_schema(recipe: Recipe) -> Mapping[str, Any] | None:
    """Return the schema that ``recipe`` has for sample answers, checked; None if it has none.

    Raises InputError if it cannot be read or answers cannot be kept to it, MissingExtraError without ``llguidance``.
    """
    if recipe.train.sample_schema is None:
        return None
    schema = read_schema(user_path(recipe.train.sample_schema))
    JsonRule(schema)
    return schema


def make_validator(run: PreparedRun, *, main: bool) -> Validator | None:
    """Return what evaluates a run, if its recipe has validation data or prompts to answer.

    Without such data, the prompts in ``train.sample_prompts`` are answered. A run that learns from preferences answers
    questions of its data even then: its figures alone do not tell how it writes. Only the ``main`` process answers
    questions, or all of them together if the base is divided among them.
    """
    inputs, trainable = run.inputs, run.trainable
    recipe = inputs.recipe
    asked = recipe.train.sample_prompts
    if inputs.validation is None and not asked and (recipe.preference is None or asked == []):
        return None
    sharded = trainable.loaded.shards > 1
    engine = None
    if main or sharded:
        engine = Engine(trainable.trained.model, inputs.tokenizer, inputs.framing, in_step=sharded)
    if recipe.train.sample_prompts is None:
        items = inputs.examples if inputs.validation is None else inputs.validation
        questions = first_questions(items, recipe.validation_files or recipe.data, recipe, SAMPLES)
    else:
        turns = [Turn("user", text) for text in recipe.train.sample_prompts]
        questions = [Question(Conversation((turn,)).with_system(recipe.system)) for turn in turns]
    return Validator(run.loop, inputs.validation, engine, questions, recipe.train.sample_tokens, sample_schema(recipe))
