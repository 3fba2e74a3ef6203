"""The values of preference data: a :class:`Pair` or a :class:`Judged` (text), and a :class:`Group` (tokens).

    row ── formats ──▶ Pair(prompt, chosen, rejected) ── render ──▶ Group(two examples, liked: yes, no)
                       Judged(prompt, answer, liked)                Group(one example, liked: yes or no)

All are immutable, comparable and printable, and know the row they came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from weitune.data.conversation import Conversation, Example, Origin, Turn

Answer = tuple[Turn, ...]
"""The turns of an answer: usually one of the assistant; with calls of tools, these and their results too."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """A prompt, to which there are answers."""

    prompt: Conversation
    """The turns before the answers."""

    @property
    def origin(self) -> Origin | None:
        return self.prompt.origin

    def with_system(self: Answered, system: str | None, *, replace_blank: bool = False) -> Answered:
        """Return this row with its prompt opened by ``system``, as :meth:`.Conversation.with_system` does."""
        return replace(self, prompt=self.prompt.with_system(system, replace_blank=replace_blank))

    def _followed_by(self, answer: Answer) -> Conversation:
        return replace(self.prompt, turns=self.prompt.turns + answer)


Answered = TypeVar("Answered", bound=_Answered)


@dataclass(frozen=True, slots=True)
class Pair(_Answered):
    """Two answers to ``prompt``, of which the ``chosen`` one is better than the ``rejected`` one."""

    chosen: Answer
    rejected: Answer
    weight: float = 1.0

    @property
    def dialogue(self) -> Conversation:
        """The prompt and the chosen answer."""
        return self._followed_by(self.chosen)


@dataclass(frozen=True, slots=True)
class Judged(_Answered):
    """An answer to ``prompt`` that was liked or not."""

    answer: Answer
    liked: bool
    weight: float = 1.0

    @property
    def dialogue(self) -> Conversation:
        """The prompt and the answer."""
        return self._followed_by(self.answer)


@dataclass(frozen=True, slots=True)
class Group:
    """Answers that one term of a preference loss looks at together: of a pair (chosen, rejected), or a judged one.

    Every answer is an example whose spans are the answer's tokens; earlier turns of the assistant are context. The
    answers of a pair share their prompt.
    """

    answers: tuple[Example, ...]
    liked: tuple[bool, ...]
    """For every answer; (True, False) for a pair."""
    weight: float = 1.0
    """How much the group counts in the mean over a step's groups."""
    reference: tuple[float, ...] = ()
    """For every answer, its summed log-probability under the reference model; empty: there is no reference."""

    @property
    def origin(self) -> Origin | None:
        return self.answers[0].origin

    @property
    def tokens(self) -> int:
        """Tokens of all answers, each with its prompt."""
        return sum(len(answer.input_ids) for answer in self.answers)

    @property
    def supervised(self) -> int:
        """Tokens of all answers, without their prompts."""
        return sum(answer.supervised for answer in self.answers)

    def sort_key(self) -> tuple[Any, ...]:
        """Return what groups are sorted by: those with a common prompt are neighbours, and ties are equal groups."""
        return tuple((answer.input_ids, answer.spans) for answer in self.answers), self.liked, self.weight


Item = Example | Group
"""What a step is made of: examples, or groups of preferences."""


def examples_in(items: Iterable[Item]) -> list[Example]:
    """Return ``items``, with the answers of a group in its place."""
    return [each for item in items for each in (item.answers if isinstance(item, Group) else (item,))]


def liked_in(item: Item) -> tuple[Example, ...]:
    """Return the example that ``item`` is, or those answers of a group that were chosen or liked."""
    if isinstance(item, Example):
        return (item,)
    return tuple(answer for answer, liked in zip(item.answers, item.liked, strict=True) if liked)
