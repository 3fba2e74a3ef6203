"""The reasoning of an assistant before its answer: in tags within the text, or in a separate field.

    "<think>\\nThe moon is full.\\n</think>\\n\\nAt noon."      reasoning "The moon is full.", content "At noon."
    "The moon is full.\\n</think>\\n\\nAt noon."               the same: the prompt wrote the opening tag
    "See <think>x</think>."                                 no reasoning: the tags are part of the text

Line breaks next to the tags belong to the tags, as in the chat templates of thinking models; spaces do not.

A message may have reasoning in several places. It is collected by place, in words for messages: ``{"`content`": "…"}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.data.conversation import Role, Turn
from weitune.data.formats.fields import Fields
from weitune.data.problems import shown
from weitune.messages import say

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that may contain its reasoning."""
_OPENING, _CLOSING = "<think>", "</think>"


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Return the reasoning at the start of an assistant's text, or None, and the rest of the text.

    The reasoning ends at the first closing tag. If no opening tag precedes it, the prompt of the model that wrote the
    text ended with one. Tags with nothing between them give the reasoning ``""``.
    """
    end = text.find(_CLOSING)
    if end < 0:
        return None, text
    start = text.find(_OPENING, 0, end)
    if start >= 0 and text[:start].strip():
        return None, text
    reasoning = text[start + len(_OPENING) if start >= 0 else 0 : end]
    return reasoning.strip("\n"), text[end + len(_CLOSING) :].lstrip("\n")


def turn_from_text(role: Role, text: str) -> Turn:
    """Return the turn with ``text`` as its content; reasoning in tags before an assistant's answer is separated."""
    reasoning, content = split_reasoning(text) if role == "assistant" else (None, text)
    return Turn(role, content, reasoning=reasoning)


def opens_with_reasoning(text: str) -> bool:
    """Return whether ``text`` begins with an opening tag and has a closing one."""
    return text.lstrip().startswith(_OPENING) and _CLOSING in text


def field_reasoning(fields: Fields, message: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the reasoning in the fields of a message for it, by place."""
    texts = {key: fields.optional_text(message, key, where) for key in REASONING_KEYS if key in message}
    return {f"`{key}`": text for key, text in texts.items() if text is not None}


def content_reasoning(fields: Fields, text: str, given: dict[str, str], part: str | None, place: str) -> str:
    """Add the reasoning within a message's content to ``given``, and return the rest of its ``text``.

    ``part`` is the reasoning in parts of the content. If other reasoning is given, a closing tag without an opening one
    is text.
    """
    if part is None and _CLOSING not in text:  # the usual case
        return text
    key = place.rpartition(".")[2]
    if part is not None:
        given[f"`{key}`"] = part
    if given and not opens_with_reasoning(text):
        return text
    reasoning, rest = split_reasoning(text)
    if reasoning is not None:
        given[say("data.reasoning.tags_in_field", field=key) if part is not None else f"`{key}`"] = reasoning
        if opens_with_reasoning(rest):
            fields.fault("data.reasoning.reasoning_twice", field=place)
    return rest


def agreed(fields: Fields, texts: Mapping[str, str], place: str) -> str | None:
    """Return the one reasoning among ``texts``, given by place; note a fault if two that are not empty differ."""
    filled = {where: text for where, text in texts.items() if text.strip("\n")}
    if len({text.strip("\n") for text in filled.values()}) > 1:
        reasonings = (say("data.reasoning.at_place", place=at, value=shown(text)) for at, text in filled.items())
        fields.fault("data.reasoning.two_reasonings", field=place, reasonings=", ".join(reasonings))
    return next(iter(filled.values()), next(iter(texts.values()), None))
