"""What a run can keep: prompts, dialogues, and the rows of an earlier run, as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weitune.data.conversation import Example, Origin, Span
from weitune.data.frame.framing import Framing
from weitune.data.keep.kept import KeptExamples
from weitune.data.keep.rows import KeepRows, read_keep_rows, shipped_prompts
from weitune.data.keep.taught import asked_in, prompts_in, text_key, token_key, token_keys
from weitune.data.preference.values import Item, liked_in
from weitune.data.prepare.holdout import ItemSet, hold_out
from weitune.data.prepare.prepare import prepare_items
from weitune.data.prepare.recipe_reader import read_options
from weitune.errors import DataError, RunError
from weitune.files.paths import user_path
from weitune.model.load.locate import locate_base
from weitune.model.load.tokenizer import open_framing
from weitune.recipe.keep import Keep
from weitune.recipe.schema import Recipe
from weitune.run.create import load_recorded
from weitune.run.names import RECIPE


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a run can keep, in the order in which it is taken."""

    prompts: Sequence[tuple[int, ...]]
    """tokens of prompts to be answered"""
    examples: Sequence[Example]
    """of dialogues and of an earlier run, one for each answer; from preferences the better answers"""
    too_long: int
    """prompts and examples left out, because they leave no room in ``tokens.max_length``"""
    taught: int
    """prompts, dialogues and rows of an earlier run left out, because the run's own rows ask the same"""

    @classmethod
    def of(cls, recipe: Recipe, keep: Keep, framing: Framing, own: Sequence[ItemSet[Item]]) -> Candidates:
        """Return what ``keep`` names that the rows of ``recipe``, prepared as ``own``, do not ask themselves.

        Raises InputError if it cannot be read or nothing is left.
        """
        named = _rows(recipe, keep)
        rows = _without_taught(named, recipe)
        replayed = [] if keep.run is None else _rows_of_run(user_path(keep.run), recipe, framing)
        untaught = _without_taught_rows(replayed, own)
        taught = len(named) - len(rows) + len(replayed) - len(untaught)
        room = recipe.tokens.max_length
        prompts = [tuple(framing.prompt(asked)) for asked in rows.prompts]
        told = [example for made in framing.examples_batch(rows.dialogues) for example in made]
        examples = [answer for example in told for answer in _answers_of(example)] + untaught
        if taught and not prompts and not examples:
            raise DataError("training.kept.all_taught", count=taught)
        fitting = [prompt for prompt in prompts if len(prompt) + keep.max_answer_tokens < room]
        short = [example for example in examples if len(example.input_ids) <= room]
        if not fitting and not short:
            raise DataError("training.kept.nothing_left", max_length=room)
        return cls(fitting, short, len(prompts) - len(fitting) + len(examples) - len(short), taught)

    def guessed(self, answer_tokens: int) -> KeptExamples:
        """Return examples of the sizes to expect, each answer as long as may be: for a plan before there are any."""
        answers = [answered(prompt, prompt[-1:] * answer_tokens) for prompt in self.prompts]
        return KeptExamples([*self.examples, *answers])

    def digest(self) -> str:
        return hashlib.sha256(repr((self.prompts, self.examples)).encode()).hexdigest()


def _rows(recipe: Recipe, keep: Keep) -> KeepRows:
    if keep.data is not None:
        return read_keep_rows(keep.data, read_options(recipe))
    return KeepRows(shipped_prompts() if keep.run is None else [], [])


def _without_taught(rows: KeepRows, recipe: Recipe) -> KeepRows:
    """Return ``rows`` without those that ask what a row of ``recipe`` asks."""
    if not len(rows):
        return rows
    asked = asked_in(recipe)
    return KeepRows(
        [prompt for prompt in rows.prompts if text_key(prompt) not in asked],
        [each for each in rows.dialogues if asked.isdisjoint(map(text_key, prompts_in(each)))],
    )


def _without_taught_rows(replayed: Sequence[Example], own: Sequence[ItemSet[Item]]) -> list[Example]:
    """Return the ``replayed`` rows of an earlier run without those whose prompts ``own`` items have."""
    asked = token_keys(own) if replayed else set()
    return [example for example in replayed if token_key(example, example.spans[0].start) not in asked]


def _rows_of_run(run: Path, recipe: Recipe, framing: Framing) -> list[Example]:
    """Return the examples of the rows that an earlier ``run`` learned, framed as ``recipe`` frames its own."""
    if not (run / RECIPE).is_file():
        raise RunError("training.kept.no_run", run=run)
    earlier = load_recorded(run)
    now = _as_now(earlier, recipe)
    items: ItemSet[Item] = prepare_items(now, framing)
    held = _held_out(earlier, items if earlier == now else None)
    learned = (item for item in (items[i] for i in range(len(items))) if item.origin not in held)
    return [answer for item in learned for example in liked_in(item) for answer in _answers_of(example)]


def _held_out(earlier: Recipe, items: ItemSet[Item] | None) -> set[Origin | None]:
    """Return the rows that an ``earlier`` run held out; ``items`` are its rows in its own tokens, which decide that."""
    if earlier.validation_fraction is None:
        return set()
    if items is None:
        items = prepare_items(earlier, open_framing(locate_base(earlier, weights=False), earlier.tokens).framing)
    _, held = hold_out(items, earlier.validation_fraction)
    return {held[i].origin for i in range(len(held))} - {None}


def _as_now(earlier: Recipe, recipe: Recipe) -> Recipe:
    """Return the recipe of an earlier run with the model and the framing of this one."""
    now = {name: getattr(recipe, name) for name in ("model", "hub", "revision", "tokens")}
    return earlier.model_copy(update=now)


def _answers_of(example: Example) -> list[Example]:
    """Return an example for each learned part of ``example``, which ends there and learns it alone, with weight 1."""
    return [
        Example(example.input_ids[: span.stop], (span._replace(weight=1.0),), example.origin) for span in example.spans
    ]


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """Return an example that learns ``answer`` to ``prompt``, both in tokens."""
    return Example((*prompt, *answer), (Span(len(prompt), len(prompt) + len(answer)),))
