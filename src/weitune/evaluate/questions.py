"""Questions with references from data: a conversation up to its last assistant turn, and that turn."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from weitune.data.conversation import Conversation, Origin, Turn
from weitune.data.formats.parse import Row
from weitune.data.frame.framing import Framing
from weitune.data.preference.values import Item, Judged
from weitune.data.prepare.holdout import ItemSet, hold_out
from weitune.data.prepare.prepare import prepare_items
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.read.conversations import Reader
from weitune.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that asks for an answer, with its system prompt, and the data's answer if there is one."""

    conversation: Conversation
    reference: str | None = None

    @property
    def text(self) -> str:
        return next((turn.content for turn in reversed(self.conversation.turns) if turn.role == "user"), "")

    def is_answer(self, text: str) -> bool:
        """Return whether ``text`` is the data's answer, word by word."""
        return text.split() == (self.reference or "").split()


def question_of(conversation: Conversation) -> Question | None:
    """Return the last assistant turn as a reference and what stands before it, or None if it is not plain text."""
    turns = conversation.turns
    last = conversation.last_answer
    if last < 1 or turns[last].tool_calls or not turns[last].content.strip():
        return None
    return Question(conversation.before(last), turns[last].content)


def questions_in(
    files: Iterable[str], recipe: Recipe, rows: Collection[tuple[str, int]] | None = None
) -> list[Question]:
    """Return the questions in ``files``, or of some ``rows`` (file, number) only; rows with problems are left out."""
    return list(_questions(files, recipe, rows))


def first_questions(examples: ItemSet[Item], files: Iterable[str], recipe: Recipe, count: int) -> list[Question]:
    """Return the first ``count`` questions with different prompts among the rows that ``examples`` were made of."""
    distinct = {question.conversation.turns: question for question in reversed(
        list(islice(_questions(files, recipe, rows_of(examples, limit=8 * count)), 8 * count))
    )}  # fmt: skip
    return list(reversed(distinct.values()))[:count]


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
        answer = Turn("assistant", question.reference or "")
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
        question = _question_in(row.with_system(recipe.system))
        if question is not None:
            yield question
        if left is not None and not left:
            return


def _question_in(row: Row) -> Question | None:
    """Return the question in a row, with a reference: its answer, unless that was rejected or not liked."""
    if isinstance(row, Judged) and not row.liked:
        return Question(row.prompt)
    return question_of(row if isinstance(row, Conversation) else row.dialogue)
