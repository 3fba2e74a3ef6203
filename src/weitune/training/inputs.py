"""The inputs of a run before any weights are loaded: model files, tokenizer, framing, prepared data, plan.

Data come before weights, because most errors are in the data, and they are quick to detect.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weitune.data.conversation import Example
from weitune.data.frame.choose import check_arguments
from weitune.data.frame.framing import Framing
from weitune.data.keep.kept import KeptExamples
from weitune.data.layout import Layout
from weitune.data.preference.reference import Reference
from weitune.data.preference.values import Item, examples_in
from weitune.data.prepare.holdout import ItemSet, hold_out, prompts
from weitune.data.prepare.prepare import Prepared, PreparedGroups, prepare_items
from weitune.data.schedule import Plan
from weitune.errors import DataError
from weitune.forecast.memory_estimate import MOST_TOKENS_ON_CPU
from weitune.forecast.workload import most_tokens_on_cpu
from weitune.generate.constrain.opening import content_opening
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES
from weitune.model.load.config import read_config
from weitune.model.load.fingerprint import base_fingerprints, differences
from weitune.model.load.locate import ModelFiles, locate_base
from weitune.model.load.names import wrapper_of
from weitune.model.load.published import check_published
from weitune.model.load.tokenizer import open_framing
from weitune.model.lora.adapter_init import adapter_folder
from weitune.recipe.first_rate import first_rate_of
from weitune.recipe.schema import Recipe
from weitune.run.base_check import recorded_basis
from weitune.training.reporter import Reporter
from weitune.training.resume.resume_checks import Basis

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerFast

    from weitune.model.capabilities import Capabilities


_STARTS_AS_BASE = ("default", "gaussian", "eva")
"""Values of ``lora.init`` with which the model before its first step is the base."""


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Everything that decides the steps of a run, except the weights."""

    recipe: Recipe
    files: ModelFiles
    tokenizer: PreTrainedTokenizerFast
    framing: Framing
    prepared: Prepared | PreparedGroups
    examples: ItemSet[Item]
    """Examples, or groups if the recipe has a ``preference``."""
    validation: ItemSet[Item] | None
    plan: Plan
    basis: Basis
    """What must be the same when the run is resumed (:mod:`.resume_checks`)."""
    kept: KeptExamples | None = None
    """Of these ``examples``, those that the model is to keep; they come last (:mod:`.keep.kept`)."""
    reference: Reference | None = None
    """Of the groups, if the method has one (:mod:`.reference.measured`)."""

    @property
    def longest(self) -> int:
        """Tokens of the longest example, or of the largest group: some pass must hold it."""
        return int(self.examples.lengths.max())

    @property
    def unit(self) -> str:
        """What steps are made of, in words."""
        return unit_of(self.recipe)

    def examples_of(self, step: int) -> list[Example]:
        """Return the examples of an optimizer step, from 0; of groups, their answers."""
        return examples_in(self.examples[int(i)] for i in self.plan.step(step))

    def layout(self, capabilities: Capabilities) -> Layout:
        """Return how a model with these ``capabilities`` computes the examples or groups."""
        return capabilities.group_layout if self.recipe.preference else capabilities.layout

    def most_on_cpu(self, capabilities: Capabilities, processes: int = 1) -> int:
        """Return how many tokens a pass on a CPU may have if memory allows, in one of the run's ``processes``."""
        if self.recipe.train.micro_tokens != "auto" or 2 * self.longest >= MOST_TOKENS_ON_CPU:
            return MOST_TOKENS_ON_CPU  # it makes no difference
        return most_tokens_on_cpu(self.examples, self.plan, self.layout(capabilities), processes)


def collect_inputs(
    recipe: Recipe,
    reporter: Reporter,
    accelerator: Accelerator | None = None,
    *,
    weights: bool = True,
    resumed: bool = False,
) -> RunInputs:
    """Find the model, prepare the data, and check that both go together. Raises InputError if they do not.

    A model's weights are downloaded last: faults of the data and of the recipe are told before.
    In the returned recipe, ``train.learning_rate`` is a number, and the ``revision`` of a model of a hub a commit.
    Without ``weights``, none are downloaded; without an ``accelerator``, this process is alone. A run that is
    ``resumed`` may give its template arguments without effect, which earlier versions let pass.
    """
    files = locate_base(recipe, weights=False)
    check_published(files)
    if files.commit:  # pinned: the branch may move on
        recipe = recipe.model_copy(update={"revision": files.commit})
    tokenizer, framing = framed = open_framing(files, recipe.tokens)
    if not resumed:
        check_arguments(framing, recipe.tokens)
    if recipe.train.sample_schema is not None:
        content_opening(framing)  # refuses a schema where the prompt opens a thought
    start = adapter_folder(recipe.adapter.init_from) if recipe.adapter and recipe.adapter.init_from else None
    for note in framing.notes:
        reporter.say(note)
    if wrapper := wrapper_of(files):
        reporter.say(say("training.inputs.text_model_only", wrapper=wrapper))
    reporter.opened(recipe, files, framed)
    with _main_first(accelerator):
        prepared = prepare_items(recipe, framing, reporter.preparing())
    for line in prepared.report.lines():
        reporter.say(line)
    _check_end_of_turn(framing, prepared)
    with _main_first(accelerator):
        examples, validation = divide(prepared, recipe, framing, reporter)
    train = recipe.train
    plan = Plan(len(examples), train.batch_size, train.epochs, train.seed, train.max_steps)
    recipe = _with_rate(recipe, files, plan, reporter)
    if weights:
        files = locate_base(recipe)
    base = base_fingerprints(files) if weights else {}
    basis = {**base, **_basis(framing, examples, validation, plan)}
    if start is not None:
        basis["lora.init_from"] = hashlib.sha256((start / ADAPTER_FILES[1]).read_bytes()).hexdigest()
        if base:
            _note_other_base(start, files, reporter)
    return RunInputs(recipe, files, tokenizer, framing, prepared, examples, validation, plan, basis)


def _with_rate(recipe: Recipe, files: ModelFiles, plan: Plan, reporter: Reporter) -> Recipe:
    """Return ``recipe`` with a number for ``train.learning_rate: auto``."""
    if recipe.train.learning_rate != "auto":
        return recipe
    width = read_config(files).hidden_size
    rate = first_rate_of(recipe, width, plan.steps, plan.steps_per_epoch)
    reporter.say(say("training.inputs.first_rate", rate=rate, width=width, count=plan.steps))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": rate})})


def _main_first(accelerator: Accelerator | None) -> AbstractContextManager[Any]:
    return accelerator.main_process_first() if accelerator is not None else nullcontext()


def divide(
    prepared: Prepared | PreparedGroups, recipe: Recipe, framing: Framing, reporter: Reporter
) -> tuple[ItemSet[Item], ItemSet[Item] | None]:
    """Return the examples or groups to learn and those to validate with, if the recipe wants any.

    Raises DataError if the validation data are not in order or none can be held out.
    """
    if recipe.validation is None:
        return prepared, None
    if recipe.validation_fraction is not None:
        items: ItemSet[Item] = prepared
        learned, held = hold_out(items, recipe.validation_fraction)
        reporter.say(say("training.inputs.held_out", held=len(held), total=len(prepared), unit=unit_of(recipe)))
        return learned, held
    validation = prepare_items(recipe, framing, reporter.preparing(), files=recipe.validation_files)
    known, unit = set(prompts(prepared)), unit_of(recipe)
    shared = sum(prompt in known for prompt in prompts(validation))
    if shared:
        reporter.say(say("training.inputs.validation_shares_prompts", count=len(validation), unit=unit, shared=shared))
    else:
        reporter.say(say("training.inputs.validation", count=len(validation), unit=unit))
    return prepared, validation


def starting_adapter(recipe: Recipe) -> dict[str, Any]:
    """Return what decides how the model differs from its base before the first step; nothing if it does not."""
    lora = recipe.adapter
    if lora is None or (not lora.init_from and lora.init in _STARTS_AS_BASE):
        return {}
    return {**lora.model_dump(exclude={"dropout", "plus_ratio", "freeze_a"}), "seed": recipe.train.seed}


def unit_of(recipe: Recipe) -> str:
    """Return what ``recipe`` makes steps of, in words."""
    if recipe.preference is None:
        return say("training.inputs.examples")
    return say("training.inputs.pairs") if recipe.preference.needs_pairs else say("training.inputs.judged_answers")


def _basis(framing: Framing, examples: ItemSet[Item], validation: ItemSet[Item] | None, plan: Plan) -> dict[str, Any]:
    """Return fingerprints of everything but the base that decides the numbers of a run."""
    basis: dict[str, Any] = {
        "framing": framing.basis(),
        "data": {
            "examples": len(examples),
            "tokens": int(examples.lengths.sum()),
            "learned tokens": int(examples.supervised.sum()),
            "contents": examples.digest(),
        },
        "plan": {
            "steps in an epoch": plan.steps_per_epoch,
            "first step": hashlib.sha256(str(plan.step(0).tolist()).encode()).hexdigest(),
        },
    }
    if validation is not None:
        basis["validation"] = {"examples": len(validation), "contents": validation.digest()}
    return basis


def _note_other_base(start: Path, files: ModelFiles, reporter: Reporter) -> None:
    """Note if the adapter in ``start``, of ``lora.init_from``, was trained on another base."""
    recorded = recorded_basis(start) or recorded_basis(start.parent)
    if changed := differences(recorded, files):
        reporter.say(say("training.inputs.init_from_other_base", folder=start, differences="\n  ".join(changed)))


def _check_end_of_turn(framing: Framing, prepared: ItemSet[Item]) -> None:
    """Raise DataError unless the examples teach the model to end its turn."""
    looked_at = examples_in(prepared[k] for k in range(min(len(prepared), 1000)))
    if not any(e.input_ids[span.stop - 1] == framing.end_of_turn for e in looked_at for span in e.spans):
        raise DataError("training.inputs.end_of_turn_never_learned")
