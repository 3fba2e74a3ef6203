"""The kept examples of a run (the recipe's ``keep``): collected once, before its first step, and never again.

    prompts ── the model as it stands answers ──┐
    dialogues ── framed ────────────────────────┼─▶ KeptExamples ─▶ MixedPlan, joined with the run's own examples
    rows of an earlier run ─────────────────────┘        │
                                                         └─▶ kept.safetensors in the run's folder, and in the cache

A run that is resumed reads its folder, so it learns the same bits wherever it goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weitune.data.conversation import Alternatives, Example, Span
from weitune.data.frame.framing import Framing
from weitune.data.keep.kept import JoinedExamples, KeptExamples
from weitune.data.keep.mixed_plan import MixedPlan, tokens_due
from weitune.data.keep.rows import KeepRows, read_keep_rows, shipped_prompts
from weitune.data.pad import pad
from weitune.data.prepare.prepare import prepare
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.schedule import permutation
from weitune.errors import DataError, RunError
from weitune.files.cache import cache_folder
from weitune.files.publish import publish_bytes
from weitune.generate.engine import BATCH_SIZE, Engine
from weitune.generate.sampling import Sampling
from weitune.messages import say
from weitune.model.batch import to_tensors
from weitune.model.fast.attention import tree_attention
from weitune.model.supervised import predicted_logits
from weitune.recipe.keep import Keep
from weitune.recipe.schema import Recipe
from weitune.run.create import load_recorded
from weitune.run.names import KEPT
from weitune.training.inputs import RunInputs

if TYPE_CHECKING:
    from weitune.training.session import Session
    from weitune.training.trainable import Trainable

_CHOICES = 8
"""The likeliest tokens that ``keep.target: distill`` keeps of each prediction."""
_ANSWERED_AT_ONCE = 4 * BATCH_SIZE
"""Prompts after which is seen whether there are enough answers."""
_VERSION = 1
"""Raised when the same recipe would keep other examples."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a run can keep, in the order in which it is taken."""

    prompts: Sequence[tuple[int, ...]]
    """tokens of prompts to be answered"""
    examples: Sequence[Example]
    """of dialogues and of an earlier run"""
    too_long: int
    """prompts and examples left out, because they leave no room in ``tokens.max_length``"""

    @classmethod
    def of(cls, recipe: Recipe, keep: Keep, framing: Framing) -> Candidates:
        """Return what ``keep`` names. Raises InputError if it cannot be read or nothing is left."""
        rows = _rows(recipe, keep)
        room = recipe.tokens.max_length
        prompts = [tuple(framing.prompt(asked)) for asked in rows.prompts]
        examples = [_ended(each) for told in framing.examples_batch(rows.dialogues) for each in told]
        if keep.run is not None:
            earlier = prepare(_as_now(load_recorded(Path(keep.run)), recipe), framing)
            examples += [_ended(earlier[i]) for i in range(len(earlier))]
        fitting = [prompt for prompt in prompts if len(prompt) + keep.max_answer_tokens < room]
        short = [example for example in examples if len(example.input_ids) <= room]
        if not fitting and not short:
            raise DataError("training.kept.nothing_left", max_length=room)
        return cls(fitting, short, len(prompts) - len(fitting) + len(examples) - len(short))

    def guessed(self, answer_tokens: int) -> KeptExamples:
        """Return examples of the sizes to expect, each answer as long as may be: for a plan before there are any."""
        answers = [_answered(prompt, prompt[-1:] * answer_tokens) for prompt in self.prompts]
        return KeptExamples([*self.examples, *answers])

    def digest(self) -> str:
        return hashlib.sha256(repr((self.prompts, self.examples)).encode()).hexdigest()


def _rows(recipe: Recipe, keep: Keep) -> KeepRows:
    if keep.data is not None:
        return read_keep_rows(keep.data, read_options(recipe))
    return KeepRows(shipped_prompts() if keep.run is None else [], [])


def _as_now(earlier: Recipe, recipe: Recipe) -> Recipe:
    """Return the recipe of an earlier run with the model and the framing of this one."""
    now = {name: getattr(recipe, name) for name in ("model", "hub", "revision", "tokens")}
    return earlier.model_copy(update=now)


def _ended(example: Example) -> Example:
    """Return the example up to its last learned token, of which only the last answer is learned."""
    last = example.spans[-1]
    return Example(example.input_ids[: last.stop], (last._replace(weight=1.0),), example.origin)


def _answered(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    return Example((*prompt, *answer), (Span(len(prompt), len(prompt) + len(answer)),))


def with_guessed(inputs: RunInputs) -> RunInputs:
    """Return ``inputs`` with kept examples of the sizes to expect, for a plan before there is a model."""
    keep = inputs.recipe.keep
    if keep is None:
        return inputs
    candidates = Candidates.of(inputs.recipe, keep, inputs.framing)
    return joined(inputs, candidates.guessed(keep.max_answer_tokens), keep.share)


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


def with_collected(session: Session, inputs: RunInputs, trainable: Trainable) -> RunInputs:
    """Return ``inputs`` with kept examples, if the recipe keeps any and they have none yet.

    Every process of a run must call it. Raises InputError if what is to be kept cannot be read.
    """
    keep = inputs.recipe.keep
    if keep is None or inputs.kept is not None:
        return inputs
    candidates = Candidates.of(inputs.recipe, keep, inputs.framing)
    place = _cached(inputs, candidates, keep, trainable)

    def collect() -> bytes:
        found = _read(place)
        if found is None:
            found = _collected(session, inputs, candidates, trainable)
            _store(found, place)
        return found.to_bytes()

    sharded = trainable.loaded.shards > 1  # then all processes compute every answer together
    kept = KeptExamples.from_bytes(collect() if sharded else session.sees(collect))
    session.reporter.say(
        say("training.kept.kept", count=len(kept), tokens=int(kept.supervised.sum()), share=keep.share)
    )
    if candidates.too_long:
        session.reporter.say(say("training.kept.too_long", count=candidates.too_long))
    return joined(inputs, kept, keep.share)


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


def _collected(session: Session, inputs: RunInputs, candidates: Candidates, trainable: Trainable) -> KeptExamples:
    """Return as many kept examples as the run uses, or all there are."""
    keep, plan = inputs.recipe.keep, inputs.plan
    assert keep is not None  # noqa: S101  (for mypy)
    needed = tokens_due(sum(int(inputs.examples.supervised[plan.step(k)].sum()) for k in range(plan.steps)), keep.share)
    answering = _Answering(inputs, trainable, keep.max_answer_tokens)
    progress = session.reporter.answering()
    numbers = permutation(len(candidates.prompts) + len(candidates.examples), plan.seed, 0).tolist()
    found: list[Example] = []
    for start in range(0, len(numbers), _ANSWERED_AT_ONCE):
        some = numbers[start : start + _ANSWERED_AT_ONCE]
        known = [candidates.examples[number] for number in some if number < len(candidates.examples)]
        asked = [number - len(candidates.examples) for number in some if number >= len(candidates.examples)]
        found += known + answering([candidates.prompts[number] for number in asked])
        learned = sum(example.supervised for example in found)
        if progress is not None:
            progress(min(learned, needed), needed)
        if learned >= needed:
            break
    if progress is not None:
        progress(needed, needed)
    return KeptExamples(answering.distilled(found) if keep.target == "distill" else found)


class _Answering:
    """The model as it stands before its first step, answering greedily and telling its probabilities."""

    def __init__(self, inputs: RunInputs, trainable: Trainable, max_answer_tokens: int) -> None:
        model, sharded = trainable.trained.model, trainable.loaded.shards > 1
        self._engine = Engine(model, inputs.tokenizer, inputs.framing, in_step=sharded)
        self._end = inputs.framing.end_of_turn
        self._sampling = Sampling(max_new_tokens=max_answer_tokens)

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[Example]:
        """Return the prompts with their answers; the end of the turn is learned where an answer ends."""
        with tree_attention(self._engine.model, on=False):
            answers = self._engine.answers_to(prompts, self._sampling)
        return [
            _answered(prompt, (*answer.tokens, self._end) if answer.stopped else answer.tokens)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def distilled(self, examples: Sequence[Example]) -> list[Example]:
        """Return ``examples`` with the model's own likeliest tokens in place of each that is learned."""
        by_length = sorted(range(len(examples)), key=lambda number: len(examples[number].input_ids))
        softened = list(examples)
        for start in range(0, len(by_length), BATCH_SIZE):
            some = by_length[start : start + BATCH_SIZE]
            alternatives = self._alternatives([examples[number] for number in some])
            for number in some:
                own = tuple(alternatives[: examples[number].supervised])
                del alternatives[: len(own)]
                softened[number] = replace(examples[number], alternatives=own)
        return softened

    @torch.inference_mode()
    def _alternatives(self, examples: Sequence[Example]) -> list[Alternatives]:
        """Return the alternatives of every learned token of ``examples``, in order."""
        model = self._engine.model
        model.eval()
        with tree_attention(model, on=False):
            logits = predicted_logits(model, to_tensors(pad(examples), model.device))
        shares, tokens = logits.float().softmax(-1).topk(min(_CHOICES, logits.shape[-1]))
        shares = shares.double() / shares.double().sum(-1, keepdim=True)
        return [tuple(zip(*both, strict=True)) for both in zip(tokens.tolist(), shares.tolist(), strict=True)]


def _cached(inputs: RunInputs, candidates: Candidates, keep: Keep, trainable: Trainable) -> Path:
    """Return the place in the cache of what these inputs keep."""
    lora, train = inputs.recipe.adapter, inputs.recipe.train
    start: dict[str, Any] = {} if lora is None else lora.model_dump(include={"init", "init_from", "r", "alpha"})
    parts = {
        "version": _VERSION,
        "basis": {key: value for key, value in inputs.basis.items() if key != "validation"},
        "keep": keep.model_dump(exclude={"data", "run"}),
        "candidates": candidates.digest(),
        "start": start,
        "numbers": [str(trainable.loaded.dtype), train.storage, train.seed, inputs.plan.steps],
    }
    name = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_folder() / "kept" / f"{name}.safetensors"


def _read(place: Path) -> KeptExamples | None:
    try:
        return KeptExamples.from_bytes(place.read_bytes())
    except (OSError, ValueError):
        return None


def _store(kept: KeptExamples, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(kept.to_bytes(), place)
    except OSError:  # the run's folder keeps them too
        return
