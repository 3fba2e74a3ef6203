"""The reference of a run (the recipe's ``preference``): measured once, before its first step, and never again.

    the model as it stands ── every answer of its groups ───┐
                           └─ KTO: mismatched answers ──────┴─▶ Reference ─▶ joined with the groups
                                                                    │
                                                                    └─▶ reference.safetensors in the run's folder,
                                                                        and in the cache

A run that is resumed reads its folder, so it learns the same bits wherever it goes on. Runs that differ in nothing that
the start of the model or the order of the groups depends on, such as β or the learning rate, find the reference in the
cache.

Only groups that the run learns from are measured, and those that are held out. Their passes are those in which the run
meets them first: sums depend on the layout of a pass in their last digits, and visibly so in bfloat16. So a model that
has not moved has gained exactly nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from weitune.data.preference.mismatched import first_mismatched, mismatched
from weitune.data.preference.reference import (
    HELD,
    MISMATCHED,
    MISMATCHED_HELD,
    TRAINED,
    AnswerSums,
    Reference,
    ReferencedGroups,
)
from weitune.data.preference.values import Group, Item
from weitune.data.prepare.holdout import GroupSet, ItemSet
from weitune.errors import NonFiniteError, RunError
from weitune.files.cache import cached_file, read_cached, store_cached
from weitune.forecast.device_memory import MemoryPlan
from weitune.messages import say
from weitune.model.load.fingerprint import stored_state
from weitune.progress import Progress
from weitune.recipe.schema import Recipe
from weitune.run.machine import arithmetic
from weitune.run.names import REFERENCE
from weitune.training.distributed.processes import agreed
from weitune.training.inputs import RunInputs, starting_adapter
from weitune.training.preference.answer_meter import AnswerMeter
from weitune.training.preference.preferences import Preferences

if TYPE_CHECKING:
    from weitune.training.session import Session
    from weitune.training.trainable import Trainable

_VERSION = 3
"""Raised when the same recipe would have another reference."""


def has_reference(recipe: Recipe) -> bool:
    """Return whether the loss of ``recipe`` compares the model with itself before the first step."""
    return recipe.preference is not None and recipe.preference.has_reference


def needs_mismatched(recipe: Recipe) -> bool:
    """Return whether the loss of ``recipe`` looks at mismatched answers."""
    return recipe.preference is not None and recipe.preference.method == "kto"


def with_recorded_reference(inputs: RunInputs, run: Path) -> RunInputs:
    """Return ``inputs`` with the reference in the folder ``run``, if the recipe's method has one.

    Raises RunError if its file is missing or damaged, or was made for fewer steps.
    """
    if not has_reference(inputs.recipe):
        return inputs
    plan = inputs.plan
    try:
        reference = Reference.from_bytes((run / REFERENCE).read_bytes())
        known = len(reference.parts[MISMATCHED]) if needs_mismatched(inputs.recipe) else 0
        some = reference.numbers is not None and len(reference.parts[TRAINED]) < plan.used
    except (OSError, ValueError, KeyError) as error:
        raise RunError("training.measured.cannot_be_read", path=run / REFERENCE, error=error) from None
    if some or (needs_mismatched(inputs.recipe) and known < first_mismatched(plan, plan.steps)):
        raise RunError("training.measured.too_short", run=run)
    return joined(inputs, reference)


def with_measured_reference(session: Session, inputs: RunInputs, trainable: Trainable, memory: MemoryPlan) -> RunInputs:
    """Return ``inputs`` with a reference, if the recipe's method has one and they have none yet.

    ``memory`` is how the run splits its steps into passes. Every process of a run must call it, before the first step.
    """
    if not has_reference(inputs.recipe) or inputs.reference is not None:
        return inputs
    micro_tokens = memory.micro_tokens
    passes = [micro_tokens, session.accelerator.num_processes, *([memory.packed] if memory.packed else ())]
    place = _cached(inputs, trainable, passes)
    first = session.accelerator.is_main_process  # machines may have other caches: what the first one has counts
    known = (lambda: read_cached(place, Reference.from_sealed_bytes)) if first else None
    reference = agreed(session.accelerator, known)
    if reference is None:
        progress = session.reporter.referring() if session.main else None
        meter = AnswerMeter.of(trainable, session.accelerator, micro_tokens)
        reference = measure_reference(inputs, meter, micro_tokens, progress)
        if session.main:
            store_cached(place, reference.to_sealed_bytes())  # the run's folder keeps it too
    session.reporter.say(say("training.measured.measured", answers=len(reference.parts[TRAINED].sums)))
    return joined(inputs, reference)


def preferences_of(inputs: RunInputs) -> Preferences | None:
    """Return what ``inputs`` have to learn from preferences; None without the recipe's ``preference``."""
    recipe = inputs.recipe
    if recipe.preference is None:
        return None
    return Preferences(recipe.preference, recipe.tokens.max_length, inputs.reference)


def joined(inputs: RunInputs, reference: Reference) -> RunInputs:
    """Return ``inputs`` whose groups know their ``reference``, with its digest in their basis.

    If the reference is that of other groups, only the basis changes; it is then refused as not the run's.
    """
    contents = {"answers": len(reference.parts[TRAINED].sums), "contents": reference.digest()}
    inputs = replace(inputs, reference=reference, basis={**inputs.basis, "reference": contents})
    trained, held = reference.parts[TRAINED], reference.parts.get(HELD)
    validation = inputs.validation
    if not reference.fits(len(inputs.examples)) or len(held or ()) != len(validation or ()):
        return inputs
    if validation is not None and held is not None:
        validation = ReferencedGroups(cast("GroupSet", validation), held)
    examples = ReferencedGroups(cast("GroupSet", inputs.examples), trained, reference.numbers)
    return replace(inputs, examples=examples, validation=validation)


def measure_reference(inputs: RunInputs, meter: AnswerMeter, micro_tokens: int, progress: Progress | None) -> Reference:
    """Measure every part of the reference, ``progress`` being called with (groups done, groups in all).

    Raises NonFiniteError if an answer has no finite log-probability.
    """
    plan, longest = inputs.plan, inputs.recipe.tokens.max_length
    held = [] if inputs.validation is None else [_group(inputs.validation, i) for i in range(len(inputs.validation))]
    watched = _Counted(_group_count(inputs), progress)
    trained: dict[int, tuple[float, ...]] = {}
    for numbers in map(plan.step, range(min(plan.steps, plan.steps_per_epoch))):
        sums = meter([_group(inputs.examples, int(i)) for i in numbers], watched.next(len(numbers)), micro_tokens)
        trained.update((int(i), sums[k]) for k, i in enumerate(numbers))
    learned = sorted(trained)
    parts = {TRAINED: AnswerSums.of([trained[i] for i in learned])}
    others: list[Group] = []
    if needs_mismatched(inputs.recipe):
        found = []
        for numbers in map(plan.step, range(plan.steps)):
            groups = mismatched([_group(inputs.examples, int(i)) for i in numbers], longest)
            found.append(meter(groups, watched.next(len(groups))))
        parts[MISMATCHED] = AnswerSums.joined(found)
        others = mismatched(held, longest)
    if held:
        sums = meter([*held, *others], watched.next(len(held) + len(others)))
        own = np.arange(len(sums)) < len(held)
        parts |= {HELD: sums.only(own)} | ({MISMATCHED_HELD: sums.only(~own)} if others else {})
    reference = Reference(parts, np.asarray(learned, np.int32) if len(learned) < plan.examples else None)
    if not reference.is_finite:
        raise NonFiniteError("training.measured.not_finite")
    return reference


def reference_tokens(inputs: RunInputs) -> int:
    """Return the tokens that the reference of ``inputs`` is measured over, each counted as often as it occurs.

    The mismatched answers of a step have about as many as its groups.
    """
    plan, lengths = inputs.plan, inputs.examples.lengths
    held = 0 if inputs.validation is None else int(inputs.validation.lengths.sum())

    def tokens(steps: int) -> int:
        return held + sum(int(lengths[plan.step(k)].sum()) for k in range(steps))

    own = tokens(min(plan.steps, plan.steps_per_epoch))
    return own + tokens(plan.steps) if needs_mismatched(inputs.recipe) else own


@dataclass(slots=True)
class _Counted:
    """Counts the groups of one call of the meter after another."""

    total: int
    progress: Progress | None
    done: int = 0

    def next(self, groups: int) -> Progress | None:
        """Return what counts the passes over the next ``groups`` as a part of all."""
        before, self.done = self.done, self.done + groups
        progress = self.progress
        if progress is None:
            return None
        return lambda done, of: progress(before + groups * done // (of or done), self.total)


def _group(items: ItemSet[Item], number: int) -> Group:
    return cast("Group", items[number])  # what a recipe with a preference prepares


def _group_count(inputs: RunInputs) -> int:
    own = inputs.plan.used, len(inputs.validation or ())
    if not needs_mismatched(inputs.recipe):
        return sum(own)
    return sum(own) + first_mismatched(inputs.plan, inputs.plan.steps) + own[1]


def _cached(inputs: RunInputs, trainable: Trainable, passes: list[int]) -> Path:
    """Return the place in the cache of the reference of these inputs, measured in such ``passes``."""
    recipe, basis = inputs.recipe, dict(inputs.basis)
    train, plan = recipe.train, inputs.plan
    basis.pop("plan", None)
    passes = [*passes, train.seed, train.batch_size, plan.used]
    if needs_mismatched(recipe):
        passes += [plan.steps, recipe.tokens.max_length]
    capable = trainable.capabilities
    numbers = [str(trainable.loaded.dtype), train.storage, capable.shares_rows, capable.head is not None]
    numbers += [trainable.blocks is not None, trainable.loaded.shards > 1]
    parts = {
        "version": _VERSION,
        "basis": basis,
        "base": stored_state(inputs.files),
        "start": starting_adapter(recipe),
        "passes": passes,
        "numbers": numbers,
        "arithmetic": arithmetic(trainable.loaded.device),
    }
    return cached_file("references", parts, ".safetensors")
