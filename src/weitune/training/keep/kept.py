"""The kept examples of a run (the recipe's ``keep``): collected once, before its first step, and never again.

    prompts ── the model as it stands answers ──┐         (answers are in the cache, for other runs of the same base)
    dialogues ── framed ────────────────────────┼─▶ KeptExamples ─▶ MixedPlan, joined with the run's own examples
    rows of an earlier run ─────────────────────┘        │
                                                         └─▶ kept.safetensors in the run's folder

A run that is resumed reads its folder, so it learns the same bits wherever it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from weitune.data.conversation import Example
from weitune.data.keep.kept import JoinedExamples, KeptExamples
from weitune.data.keep.mixed_plan import MixedPlan, tokens_due
from weitune.data.preference.values import Item
from weitune.data.prepare.holdout import ItemSet
from weitune.data.schedule import permutation
from weitune.errors import RunError
from weitune.files.cache import cached_file
from weitune.generate.engine import BATCH_SIZE
from weitune.messages import say
from weitune.model.load.fingerprint import stored_state
from weitune.recipe.keep import Keep
from weitune.run.data_record import KeptSize
from weitune.run.machine import arithmetic
from weitune.run.names import KEPT
from weitune.training.inputs import RunInputs, starting_adapter
from weitune.training.keep.answering import Answering
from weitune.training.keep.cached_answers import CachedAnswers
from weitune.training.keep.candidates import Candidates
from weitune.training.reporter import Reporter

if TYPE_CHECKING:
    from weitune.training.session import Session
    from weitune.training.trainable import Trainable

_LOOKED_AT = 4
"""Times as many tokens as are needed, in which answers that end are looked for."""
_VERSION = 4
"""Raised when a model would answer otherwise, or the file is another."""


def with_guessed(inputs: RunInputs, reporter: Reporter) -> RunInputs:
    """Return ``inputs`` with kept examples of the sizes to expect, for a plan before there is a model."""
    keep = inputs.recipe.keep
    if keep is None:
        return inputs
    candidates = _candidates(inputs, keep)
    together = joined(inputs, candidates.guessed(keep.max_answer_tokens), keep.share)
    for note in _notes(together, candidates, "training.kept.planned"):
        reporter.say(note)
    return together


def with_recorded(inputs: RunInputs, run: Path) -> RunInputs:
    """Return ``inputs`` with the kept examples in the folder ``run``, if the recipe keeps any.

    Raises RunError if their file is missing or damaged.
    """
    keep = inputs.recipe.keep
    if keep is None:
        return inputs
    try:
        kept = KeptExamples.from_bytes((run / KEPT).read_bytes())
    except (OSError, ValueError) as error:
        raise RunError("training.kept.cannot_be_read", path=run / KEPT, error=error) from None
    return joined(inputs, kept, keep.share)


def to_collect(inputs: RunInputs) -> Candidates | None:
    """Return what kept examples are taken from; None if the recipe keeps none or ``inputs`` have them already.

    Raises InputError if what is to be kept cannot be read.
    """
    keep = inputs.recipe.keep
    return None if keep is None or inputs.kept is not None else _candidates(inputs, keep)


def with_collected(
    session: Session, inputs: RunInputs, trainable: Trainable, candidates: Candidates | None
) -> RunInputs:
    """Return ``inputs`` with kept examples taken from ``candidates`` (:func:`to_collect`), if there are any.

    Every process of a run must call it.
    """
    keep = inputs.recipe.keep
    if keep is None or candidates is None:
        return inputs

    def collect() -> bytes:
        return _collected(session, inputs, candidates, trainable).to_bytes()

    sharded = trainable.loaded.shards > 1  # then all processes compute every answer together
    kept = KeptExamples.from_bytes(collect() if sharded else session.sees(collect))
    together = joined(inputs, kept, keep.share)
    for note in [*_notes(together, candidates, "training.kept.kept"), *_note_of_cut(inputs, kept, keep)]:
        session.reporter.say(note)
    return together


def kept_size(inputs: RunInputs) -> KeptSize | None:
    """Return what all steps learn of kept examples; None if the recipe keeps none."""
    keep, plan = inputs.recipe.keep, inputs.plan
    if keep is None or not isinstance(plan, MixedPlan):
        return None
    use = plan.use()
    return KeptSize(use.examples, use.tokens, use.share, keep.target)


def _notes(inputs: RunInputs, candidates: Candidates, message: str) -> list[str]:
    """Return what to tell of the kept examples that the plan of ``inputs`` uses, and of those that were left out."""
    plan = inputs.plan
    assert isinstance(plan, MixedPlan)  # noqa: S101  (for mypy)
    use = plan.use()
    about = {"count": use.examples, "tokens": use.tokens, "share": use.share, "own_tokens": use.own_tokens}
    lines = [say(message if use.examples else "training.kept.none", **about)]
    if candidates.too_long:
        lines.append(say("training.kept.too_long", count=candidates.too_long))
    if candidates.taught:
        lines.append(say("training.kept.taught", count=candidates.taught))
    return lines


def _note_of_cut(inputs: RunInputs, kept: KeptExamples, keep: Keep) -> list[str]:
    """Return what to tell of answers among ``kept`` that were cut, as those of models that think first often are."""
    longest, end = keep.max_answer_tokens, inputs.framing.end_of_turn
    examples = map(kept.__getitem__, range(len(kept)))
    cut = sum(example.supervised == longest and example.input_ids[-1] != end for example in examples)
    return [say("training.kept.cut", cut=cut, count=len(kept), tokens=longest)] if cut else []


def joined(inputs: RunInputs, kept: KeptExamples, share: float) -> RunInputs:
    """Return ``inputs`` with ``kept`` examples in their plan, and the digest of these in their basis."""
    own = inputs.examples
    return replace(
        inputs,
        kept=kept,
        examples=JoinedExamples(own, kept),
        plan=MixedPlan.over(inputs.plan, own.supervised, kept.supervised, share),
        basis={**inputs.basis, "keep": {"examples": len(kept), "contents": kept.digest()}},
    )


def _candidates(inputs: RunInputs, keep: Keep) -> Candidates:
    """Return what ``keep`` names beside all rows of the run, also those for validation."""
    own: list[ItemSet[Item]] = [inputs.prepared, *([] if inputs.validation is None else [inputs.validation])]
    return Candidates.of(inputs.recipe, keep, inputs.framing, own)


def _collected(session: Session, inputs: RunInputs, candidates: Candidates, trainable: Trainable) -> KeptExamples:
    """Return as many kept examples as the run uses, or all there are."""
    keep, plan = inputs.recipe.keep, inputs.plan
    assert keep is not None  # noqa: S101  (for mypy)
    needed = tokens_due(sum(int(inputs.examples.supervised[plan.step(k)].sum()) for k in range(plan.steps)), keep.share)
    answering, progress = Answering(inputs, trainable, keep.max_answer_tokens), session.reporter.answering()
    together = trainable.loaded.shards > 1  # on machines whose caches may differ
    answers = CachedAnswers(answering, None if together else _answers_file(inputs, candidates, keep, trainable))
    done = 0

    def learned(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress is not None:
            progress(min(done, needed), needed)

    found = _enough(_in_order(candidates, answers, learned), answering.ended, needed)
    answers.store()
    if progress is not None:
        progress(needed, needed)
    return answering.distilled(found) if keep.target == "distill" else KeptExamples(found)


def _in_order(candidates: Candidates, answers: CachedAnswers, learned: Callable[[int], object]) -> Iterator[Example]:
    """Yield the candidates in an order of their own; prompts are answered as many at once as the engine answers.

    The order is the same for all runs, so that they find each other's answers, computed with the same neighbours.
    ``learned`` is called with the learned tokens of each that is no cut answer as soon as they are known.
    """
    known = len(candidates.examples)
    numbers = permutation(known + len(candidates.prompts), 0, 0).tolist()
    for start in range(0, len(numbers), BATCH_SIZE):
        some = numbers[start : start + BATCH_SIZE]
        asked = [candidates.prompts[number - known] for number in some if number >= known]
        said = iter(answers(asked, learned) if asked else [])
        for number in some:
            if number < known:
                learned(candidates.examples[number].supervised)
            yield candidates.examples[number] if number < known else next(said)


def _enough(examples: Iterator[Example], ended: Callable[[Example], bool], needed: int) -> list[Example]:
    """Return the first examples that have ``needed`` learned tokens together, at least one; or all there are.

    Answers that were cut teach to go on where the model would end, so they are taken only where there are not enough
    others in ``_LOOKED_AT`` times as many tokens, or in as many examples as are answered at once.
    """
    found: list[Example] = []
    cut: list[Example] = []
    due, left = needed, _LOOKED_AT * needed
    for number, example in enumerate(examples, 1):
        (found if ended(example) else cut).append(example)
        due -= example.supervised if ended(example) else 0
        left -= example.supervised
        if (due <= 0 and found) or (left <= 0 and number >= BATCH_SIZE):
            break
    for example in cut:
        if due <= 0 and found:
            break
        found.append(example)
        due -= example.supervised
    return found


def _answers_file(inputs: RunInputs, candidates: Candidates, keep: Keep, trainable: Trainable) -> Path:
    """Return the place in the cache of the answers that the model of these inputs gives to the candidates."""
    parts = {
        "version": _VERSION,
        "basis": {key: value for key, value in inputs.basis.items() if key not in ("data", "plan", "validation")},
        "candidates": candidates.digest(),
        "base": stored_state(inputs.files),
        "start": starting_adapter(inputs.recipe),
        "numbers": [str(trainable.loaded.dtype), inputs.recipe.train.storage, keep.max_answer_tokens, BATCH_SIZE],
        "arithmetic": arithmetic(trainable.loaded.device),
    }
    return cached_file("kept", parts, ".safetensors")
