"""The two values of the data pipeline: a :class:`Conversation` (text) and an :class:`Example` (tokens).

    row ── formats ──▶ Conversation ── render ──▶ Example(input_ids, spans)

Both are immutable, comparable and printable, and know the row they came from. Their parts are named tuples, since
millions of them are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from weitune.messages import joined, say

Role = Literal["system", "user", "assistant", "tool"]


class Origin(NamedTuple):
    """The place of a row: ``row`` and ``line`` count from 1; ``line`` is only known in some text files."""

    file: str
    row: int
    line: int | None = None

    def __str__(self) -> str:
        """Return for example ``dialogues.jsonl row 12 (line 13)``."""
        line = [] if self.line is None else [say("data.problems.line", line=self.line)]
        return joined(" ", [self.file, say("data.problems.row", row=self.row), *line])


class ToolCall(NamedTuple):
    """One function call that an assistant turn makes; ``arguments`` are the decoded JSON object."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


class Turn(NamedTuple):
    """One message.

    ``weight`` scales the loss of an assistant turn's tokens (0: not learned) and means nothing for other roles.
    ``reasoning`` is what the assistant thought before ``content``; the chat template frames it. A ``tool`` turn may say
    which call it answers (``tool_call_id``); otherwise it answers the first open one.
    """

    role: Role
    content: str
    weight: float = 1.0
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, the tools the assistant may call (JSON schemas), and where all this was read."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    origin: Origin | None = None

    @property
    def system(self) -> str | None:
        """The system prompt, if the conversation opens with one."""
        return self.turns[0].content if self.turns and self.turns[0].role == "system" else None

    @property
    def last_answer(self) -> int:
        """The index of the assistant's last turn; -1 if it says nothing."""
        return max((at for at, turn in enumerate(self.turns) if turn.role == "assistant"), default=-1)

    def before(self, turn: int) -> Conversation:
        """Return what was said before the turn of index ``turn``."""
        return Conversation(self.turns[:turn], self.tools, self.origin)

    def with_system(self, system: str | None, *, replace_blank: bool = False) -> Conversation:
        """Return this conversation, opened by ``system`` if it has no system prompt of its own.

        With ``replace_blank`` a blank one is none: data often have one where a form was left empty.
        """
        if system is None:
            return self
        turns = self.turns
        if replace_blank and self.system is not None and not self.system.strip():
            turns = turns[1:]
        elif self.system is not None:
            return self
        return Conversation((_opening(system), *turns), self.tools, self.origin)


@lru_cache(maxsize=4)
def _opening(system: str) -> Turn:
    """Return the turn that opens a conversation under ``system``: one object for all rows."""
    return Turn("system", system)


class Span(NamedTuple):
    """Tokens ``start`` to ``stop`` (exclusive) of an example are learned, each with ``weight``."""

    start: int
    stop: int
    weight: float = 1.0


OTHERS = -1
"""In place of a token to predict: any token that no other prediction of the same state names."""

_ROUNDING = 1e-6
"""Probabilities that sum to more than 1 minus this sum to 1."""

Alternatives = tuple[tuple[int, float], ...]
"""Tokens, each with its probability. What the probabilities leave of 1 is due to all other tokens together."""


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one training sequence and which of them are learned.

    ``input_ids`` has shape (L,). ``spans`` are disjoint and in order; a token outside every span has weight 0.
    A token's weight scales the loss of *predicting* it, so the first token of a sequence is never in a span.
    """

    input_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    origin: Origin | None = field(default=None, compare=False)
    alternatives: tuple[Alternatives, ...] = ()
    """What is predicted in place of each learned token, in order; empty: the tokens themselves."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The tokens that a model must read: those before the last learned one, which is only ever predicted."""
        return self.input_ids[: self.spans[-1].stop - 1] if self.spans else ()

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        return sum(span.stop - span.start for span in self.spans)

    @property
    def weight(self) -> float:
        """Sum of the weights of all tokens: this example's share of the step's normaliser."""
        return sum((span.stop - span.start) * span.weight for span in self.spans)

    def predictions(self) -> Iterator[tuple[int, int, float]]:
        """Yield every prediction: the depth of the predicted token, a token or OTHERS, and how much it counts."""
        alternatives = iter(self.alternatives)
        for start, stop, weight in self.spans:
            for depth in range(start, stop):
                if not self.alternatives:
                    yield depth, self.input_ids[depth], weight
                    continue
                rest = 1.0
                for token, probability in next(alternatives):
                    rest -= probability
                    yield depth, token, weight * probability
                if rest > _ROUNDING:
                    yield depth, OTHERS, weight * rest

    @property
    def loss_mask(self) -> tuple[float, ...]:
        """Weight of every token, shape (L,)."""
        mask = [0.0] * len(self.input_ids)
        for span in self.spans:
            mask[span.start : span.stop] = [span.weight] * (span.stop - span.start)
        return tuple(mask)
