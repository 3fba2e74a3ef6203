"""Advice for a row that a template cannot frame: what to change about the row, or about the template's arguments.

Each change is tried on the row, and only those that work become advice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.template import ChatTemplate
from weitune.messages import say

_FIXES_NAMED = 3
"""Working changes that a message names, at most."""
_SHAPES_TRIED = 128
"""Shapes of faulty rows for which changes are tried, at most: each costs a few renderings."""
Arguments = Sequence[tuple[str, Any]]


class Fix(NamedTuple):
    """A change in words, and what it makes of the row and the template's arguments."""

    words: str
    conversation: Conversation
    arguments: Mapping[str, Any]
    """Further arguments of the template."""
    group: str = ""
    """Of the changes of a group, only the first one that works becomes advice."""


class Advisor:
    """Gives advice about rows, once for all rows of a shape. ``works`` tries whether a change makes a row framable."""

    def __init__(self, works: Callable[[Fix], bool]) -> None:
        self._works = works
        self._known: dict[Any, str] = {}

    def advice(self, kind: str, at: int, conversation: Conversation, template: ChatTemplate) -> str | None:
        """Return what helps with a refusal of ``kind`` at turn ``at`` (from 0); None if nothing does."""
        key = (kind, at, shape(conversation))
        if key not in self._known:
            if not kind or len(self._known) == _SHAPES_TRIED:
                return None
            working: list[Fix] = []
            for fix in fixes_for(kind, at, conversation, template.asks_for):
                known = bool(fix.group) and any(fix.group == other.group for other in working)
                if len(working) < _FIXES_NAMED and not known and self._works(fix):
                    working.append(fix)
            self._known[key] = _sentence([fix.words for fix in working])
        return self._known[key] or None


def fixes_for(kind: str, at: int, conversation: Conversation, arguments: Arguments) -> Iterator[Fix]:
    """Yield what could be tried for a refusal of ``kind`` at turn ``at`` (from 0).

    ``arguments`` are those that the template asks for, with values.
    """
    if kind == "first":
        yield from _for_an_opening_answer(at, conversation)
    elif kind in ("prompt", "reasoning"):
        yield from _for_reasoning(kind, at, conversation, arguments)
    elif kind == "turns":
        yield from _for_arguments(conversation, arguments)
        yield from _for_turns(conversation)
    elif kind == "text":
        yield from _for_a_text(at, conversation)
    elif kind == "tools":
        yield Fix(say("data.fixes.remove_tools"), replace(conversation, tools=()), {})


def _sentence(words: Sequence[str]) -> str:
    """Return the sentence that names the alternatives in ``words``; "" if there are none."""
    if not words:
        return ""
    fixes = reduce(lambda first, second: say("data.fixes.or", first=first, second=second), words)
    return say("data.fixes.sentence", fixes=fixes[:1].upper() + fixes[1:])


def shape(conversation: Conversation) -> tuple[Any, ...]:
    """Return a key that is equal for rows for which the same changes work."""
    turns = [(t.role, t.reasoning and bool(t.reasoning), len(t.tool_calls), bool(t.weight)) for t in conversation.turns]
    return (tuple(turns), bool(conversation.tools))


def _for_arguments(conversation: Conversation, arguments: Arguments) -> Iterator[Fix]:
    for name, value in arguments:
        words = say("data.fixes.set_argument", name=name, value=json.dumps(value, ensure_ascii=False))
        yield Fix(words, conversation, {name: value}, name)


def _for_the_system(conversation: Conversation) -> Iterator[Fix]:
    first, *others = conversation.turns or (Turn("user", ""),)
    if first.role == "system" and others and others[0].role == "user":
        asked = others[0]._replace(content=f"{first.content}\n\n{others[0].content}")
        yield Fix(say("data.fixes.move_system"), replace(conversation, turns=(asked, *others[1:])), {})


def _for_a_text(at: int, conversation: Conversation) -> Iterator[Fix]:
    """Yield what helps if the template leaves out the text of turn ``at``."""
    if conversation.turns[at].role == "system":
        yield from _for_the_system(conversation)
    yield from _without_text_beside_calls(conversation)


def _without_text_beside_calls(conversation: Conversation) -> Iterator[Fix]:
    without = tuple(turn._replace(content="") if turn.tool_calls else turn for turn in conversation.turns)
    if without != conversation.turns:
        yield Fix(say("data.fixes.remove_text_beside_calls"), replace(conversation, turns=without), {})


def _one_by_one(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Yield ``turns`` with each call in a turn of its own, before its answer."""
    moved: set[int] = set()
    for i, turn in enumerate(turns):
        calls = turn.tool_calls
        told = range(i + 1, i + len(calls))  # all answers but the last, which is in its place already
        if len(calls) > 1 and all(turn.role == "tool" for turn in turns[i + 1 : i + 1 + len(calls)]):
            moved.update(told)
            yield turn._replace(tool_calls=calls[:1])
            for call, at in zip(calls[1:], told, strict=True):
                yield from turns[at : at + 1]
                yield Turn("assistant", "", turn.weight, tool_calls=(call,))
        elif i not in moved:
            yield turn


def _for_turns(conversation: Conversation) -> Iterator[Fix]:
    yield from _for_the_system(conversation)
    if any(len(turn.tool_calls) > 1 for turn in conversation.turns):
        turns = tuple(_one_by_one(conversation.turns))
        yield Fix(say("data.fixes.one_call_a_turn"), replace(conversation, turns=turns), {})
    yield from _without_text_beside_calls(conversation)
    joined: list[Turn] = []
    for turn in conversation.turns:
        if joined and joined[-1].role == turn.role in ("user", "assistant") and not joined[-1].tool_calls:
            joined[-1] = turn._replace(content=f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    if len(joined) < len(conversation.turns):
        yield Fix(say("data.fixes.join_turns"), replace(conversation, turns=tuple(joined)), {})


def _for_an_opening_answer(at: int, conversation: Conversation) -> Iterator[Fix]:
    turns = conversation.turns
    yield from _for_other_turns(at, conversation)
    if conversation.system is None:
        opened = replace(conversation, turns=(Turn("system", "x"), *turns))
        yield Fix(say("data.fixes.add_system"), opened, {})
    asked = (*turns[:at], Turn("user", "x"), *turns[at:])
    yield Fix(say("data.fixes.add_user_turn"), replace(conversation, turns=asked), {})
    without = (*turns[:at], *turns[at + 1 :])
    yield Fix(say("data.fixes.remove_first_turn"), replace(conversation, turns=without), {})


def _for_reasoning(kind: str, at: int, conversation: Conversation, arguments: Arguments) -> Iterator[Fix]:
    yield from _for_arguments(conversation, arguments)
    if conversation.turns[at].reasoning:
        yield Fix(say("data.fixes.remove_reasoning"), _thinking(conversation, at, None), {})
    else:
        yield Fix(say("data.fixes.add_reasoning_or_none"), _thinking(conversation, None, ""), {}, "give")
        yield Fix(say("data.fixes.add_reasoning"), _thinking(conversation, None, "x"), {}, "give")
    if kind == "prompt":
        if any(turn.reasoning is not None for turn in conversation.turns[:at]):
            earlier = [turn._replace(reasoning=None) for turn in conversation.turns[:at]]
            without = replace(conversation, turns=(*earlier, *conversation.turns[at:]))
            yield Fix(say("data.fixes.remove_earlier_reasoning"), without, {})
        yield from _for_the_system(conversation)
        if conversation.system is not None:
            yield Fix(say("data.fixes.remove_system"), replace(conversation, turns=conversation.turns[1:]), {})
    yield from _for_other_turns(at, conversation)


def _for_other_turns(at: int, conversation: Conversation) -> Iterator[Fix]:
    """Yield the change that leaves only the other turns to be learned, if there are any."""
    turns = conversation.turns
    if any(turn.role == "assistant" and turn.weight for i, turn in enumerate(turns) if i != at):
        context = turns[at]._replace(weight=0.0)
        yield Fix(say("data.fixes.weight_0"), replace(conversation, turns=(*turns[:at], context, *turns[at + 1 :])), {})


def _thinking(conversation: Conversation, at: int | None, reasoning: str | None) -> Conversation:
    """Return ``conversation`` with ``reasoning`` in the answers that have none.

    With ``at``, it replaces that of all answers with calls if turn ``at`` has calls, else of all without.
    """

    def changed(turn: Turn) -> Turn:
        if turn.role != "assistant":
            return turn
        if at is None:
            return turn._replace(reasoning=turn.reasoning or reasoning)
        alike = bool(turn.tool_calls) == bool(conversation.turns[at].tool_calls)
        return turn._replace(reasoning=reasoning) if alike else turn

    return replace(conversation, turns=tuple(map(changed, conversation.turns)))
