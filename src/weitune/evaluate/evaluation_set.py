"""What models are evaluated on: examples, and questions with references.

A question is a conversation up to its last assistant turn; that turn is the reference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from weitune.data.conversation import Conversation, Example, Origin, Turn
from weitune.data.formats.parse import Row
from weitune.data.formats.reasoning import split_reasoning
from weitune.data.frame.framing import Framing
from weitune.data.preference.values import Group, Item, Judged
from weitune.data.prepare.holdout import ItemSet, hold_out
from weitune.data.prepare.prepare import prepare_items
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.read.conversations import Reader
from weitune.errors import DataError, InputError, RunError
from weitune.files.json_files import json_object
from weitune.generate.run import Run
from weitune.messages import say
from weitune.model.load.tokenizer import open_framing
from weitune.recipe.schema import Recipe
from weitune.run.names import ENVIRONMENT


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that asks for an answer, with its system prompt, and the data's answer if there is one."""

    conversation: Conversation
    reference: str | None = None
    reasoning: str | None = None
    """What the data's answer thinks before it; answers are compared without it."""

    @property
    def text(self) -> str:
        return next((turn.content for turn in reversed(self.conversation.turns) if turn.role == "user"), "")

    def is_answer(self, text: str) -> bool:
        """Return whether ``text``, after any thought, is the data's answer, word by word."""
        return self.reference is not None and split_reasoning(text)[1].split() == self.reference.split()


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """What models are evaluated on: examples for the loss, and questions to answer."""

    name: str
    examples: Sequence[Example]
    questions: Sequence[Question]
    learned: Sequence[Question] = ()
    """Questions of the training data, to find answers that were learned by heart."""
    groups: Sequence[Group] = ()
    """Of preferences; the ``examples`` are then their liked answers."""
    unmeasured: str = ""
    """Why there are no ``learned`` questions, if some were asked for."""
    changed: str = ""
    """What to tell if rows that are held out now may have been learned."""

    @classmethod
    def of_items(
        cls, name: str, items: ItemSet[Item], questions: Sequence[Question], learned: Sequence[Question]
    ) -> EvaluationSet:
        every = [items[i] for i in range(len(items))]
        groups = [item for item in every if isinstance(item, Group)]
        liked = [
            answer for group in groups for answer, is_liked in zip(group.answers, group.liked, strict=True) if is_liked
        ]
        examples = [item for item in every if isinstance(item, Example)]
        return cls(name, examples + liked, questions, learned, groups)


def evaluation_set(
    run: Run, files: Sequence[str] = (), limit: int | None = None, training_rows: int = 0
) -> EvaluationSet:
    """Return the run's validation rows, or those in ``files``; at most ``limit`` of them are asked as questions.

    The first ``training_rows`` questions of the training data come with them, if these are there.

    Raises RunError if the run has no validation data and no file is given, DataError if the data have problems.
    """
    recipe = run.recipe
    files = files or recipe.validation_files
    if not files and recipe.validation is None:
        if run.made_elsewhere:
            raise RunError("evaluate.evaluation_set.made_elsewhere", path=run.path)
        raise RunError("evaluate.evaluation_set.no_validation", path=run.path)
    framing = open_framing(run.base_files(), recipe.tokens).framing
    if files:
        read_as, items = _prepared(recipe, framing, files)
        questions = questions_in(files, read_as)
        learned, unmeasured = _learned(run, framing, training_rows)
        rows = EvaluationSet.of_items(", ".join(files), items, questions[:limit], learned)
        return replace(rows, unmeasured=unmeasured)
    fraction = recipe.validation_fraction
    assert fraction is not None  # noqa: S101  (for mypy)
    trained, held = hold_out(prepare_items(recipe, framing), fraction)
    questions = questions_in(recipe.data, recipe, rows_of(held))
    name = say("evaluate.evaluation_set.held_out", fraction=fraction)
    learned = first_questions(trained, recipe.data, recipe, training_rows) if training_rows else ()
    rows = EvaluationSet.of_items(name, held, questions[:limit], learned)
    return replace(rows, changed=_changed(run, held))


def _changed(run: Run, held: ItemSet[Item]) -> str:
    """Return what to tell if ``held`` are not the rows that ``run`` held out, because its data have changed."""
    basis = json_object(run.path / ENVIRONMENT).get("basis", {})
    recorded = basis.get("validation", {}).get("contents")
    if recorded is None or recorded == held.digest():
        return ""
    return say("evaluate.evaluation_set.changed", data=", ".join(run.recipe.data))


def _learned(run: Run, framing: Framing, count: int) -> tuple[Sequence[Question], str]:
    """Return the first ``count`` questions that the run learned, or why there are none."""
    if not count:
        return (), ""
    if run.made_elsewhere:
        return (), say("evaluate.evaluation_set.unmeasured_made_elsewhere")
    data = ", ".join(run.recipe.data)
    try:
        found = learned_questions(run.recipe, framing, count)
    except InputError:
        return (), say("evaluate.evaluation_set.unmeasured_unread", data=data)
    return found, "" if found else say("evaluate.evaluation_set.unmeasured_no_questions", data=data)


def _prepared(recipe: Recipe, framing: Framing, files: Sequence[str]) -> tuple[Recipe, ItemSet[Item]]:
    """Return the examples or groups in ``files``, and the recipe that they were read by.

    A run that learned from preferences can be evaluated on dialogues, too. Raises DataError if they are neither.
    """
    try:
        return recipe, prepare_items(recipe, framing, files=files)
    except DataError:
        dialogues = recipe.model_copy(update={"preference": None})
        if recipe.preference is not None:
            with suppress(DataError):
                return dialogues, prepare_items(dialogues, framing, files=files)
        raise


def question_of(conversation: Conversation) -> Question | None:
    """Return the last assistant turn as a reference and what stands before it.

    None if it is not plain text, or if its weight is 0: it is then not an answer to learn.
    """
    last = conversation.last_answer
    if last < 1:
        return None
    answer = conversation.turns[last]
    if answer.tool_calls or not answer.content.strip() or not answer.weight:
        return None
    return Question(conversation.before(last), answer.content, answer.reasoning)


def questions_in(
    files: Iterable[str], recipe: Recipe, rows: Collection[tuple[str, int]] | None = None
) -> list[Question]:
    """Return the questions in ``files``, or of some ``rows`` (file, number) only; rows with problems are left out."""
    return list(_questions(files, recipe, rows))


def first_questions(examples: ItemSet[Item], files: Iterable[str], recipe: Recipe, count: int) -> list[Question]:
    """Return the first ``count`` questions with different prompts among the rows that ``examples`` were made of."""
    distinct: dict[str, Question] = {}
    for question in islice(_questions(files, recipe, rows_of(examples, limit=8 * count)), 8 * count):
        asked = question.conversation  # its tool calls and tools cannot be hashed
        distinct.setdefault(repr((asked.turns, asked.tools)), question)
    return list(distinct.values())[:count]


def learned_questions(recipe: Recipe, framing: Framing, count: int) -> list[Question]:
    """Return the first ``count`` questions with different prompts of the rows that a run of ``recipe`` learned.

    Raises InputError if its data are not there or not in order.
    """
    items: ItemSet[Item] = prepare_items(recipe, framing)
    if recipe.validation_fraction is not None:
        items, _ = hold_out(items, recipe.validation_fraction)
    return first_questions(items, recipe.data, recipe, count)


def short_enough(framing: Framing, questions: Iterable[Question], max_new_tokens: int) -> list[Question]:
    """Return the questions whose whole reference, its end included, has at most ``max_new_tokens`` tokens."""

    def fits(question: Question) -> bool:
        answer = Turn("assistant", question.reference or "", reasoning=question.reasoning)
        answered = replace(question.conversation, turns=(*question.conversation.turns, answer))
        last = [example.spans[-1] for example in framing.examples(answered) if example.spans]
        return all(span.stop - span.start <= max_new_tokens for span in last)

    return [question for question in questions if question.reference and fits(question)]


def rows_of(examples: ItemSet[Item], limit: int | None = None) -> set[tuple[str, int]]:
    """Return (file, row) of every example or group, or of the first ``limit``."""
    origins: list[Origin | None] = [examples[i].origin for i in range(min(len(examples), limit or len(examples)))]
    return {(origin.file, origin.row) for origin in origins if origin is not None}


def _questions(files: Iterable[str], recipe: Recipe, rows: Collection[tuple[str, int]] | None) -> Iterator[Question]:
    reader = Reader(files, read_options(recipe))
    left = None if rows is None else set(rows)
    for _, row in reader.valid_rows():
        origin = row.origin
        if left is not None and origin is not None:
            if (origin.file, origin.row) not in left:
                continue
            left.discard((origin.file, origin.row))
        question = _question_in(row.with_system(recipe.system, replace_blank=True))
        if question is not None:
            yield question
        if left is not None and not left:
            return


def _question_in(row: Row) -> Question | None:
    """Return the question in a row, with a reference: its answer, unless that was rejected or not liked."""
    if isinstance(row, Judged) and not row.liked:
        return Question(row.prompt)
    return question_of(row if isinstance(row, Conversation) else row.dialogue)
