"""A question is a conversation up to its last assistant turn, which is the reference."""

from __future__ import annotations

from typing import Any

from weitune.data.conversation import Conversation, Turn
from weitune.evaluate.questions import question_of


def turns(*contents: str) -> Conversation:
    roles: Any = ("user", "assistant")
    return Conversation(tuple(Turn(roles[n % 2], text) for n, text in enumerate(contents)))


def test_the_last_assistant_turn_is_the_reference() -> None:
    question = question_of(turns("a", "b", "c", "d", "e"))
    assert question is not None
    assert (question.text, question.reference) == ("c", "d")
    assert question_of(turns("a")) is None
    assert question_of(turns("a", "  ")) is None
