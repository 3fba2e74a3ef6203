"""What an assistant thought before it answered: written in tags within the text, or in a field of its own.

    "<think>\\nThe moon is full.\\n</think>\\n\\nAt noon."      reasoning "The moon is full.", content "At noon."
    "The moon is full.\\n</think>\\n\\nAt noon."               the same: the prompt wrote the opening tag
    "See <think>x</think>."                                 no reasoning: the tags are part of the text

Line breaks next to the tags belong to the tags, as in the templates of thinking models; blanks do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.data.conversation import Role, Turn
from weitune.data.formats.fields import Fields
from weitune.data.problems import shown

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that hold its reasoning."""
_OPENING, _CLOSING = "<think>", "</think>"


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Return the reasoning that opens an assistant's text (None if there is none) and the rest.

    It ends at the first closing tag. A text without an opening tag before that is the output of a model whose prompt
    ended with the opening tag. Reasoning between the tags may be empty: then it is ``""``.
    """
    end = text.find(_CLOSING)
    if end < 0:
        return None, text
    start = text.find(_OPENING, 0, end)
    if start >= 0 and text[:start].strip():
        return None, text
    reasoning = text[start + len(_OPENING) if start >= 0 else 0 : end]
    return reasoning.strip("\n"), text[end + len(_CLOSING) :].lstrip("\n")


def said(role: Role, text: str) -> Turn:
    """Return the turn that says ``text``; what an assistant thought in tags before its answer becomes its reasoning."""
    reasoning, content = split_reasoning(text) if role == "assistant" else (None, text)
    return Turn(role, content, reasoning=reasoning)


def opens_with_reasoning(text: str) -> bool:
    """Tell whether ``text`` begins with both tags, not only with a closing one somewhere."""
    return text.lstrip().startswith(_OPENING) and _CLOSING in text


def given_reasoning(fields: Fields, message: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the reasoning that a message's own fields hold, by the name of the field."""
    texts = {key: fields.optional_text(message, key, where) for key in REASONING_KEYS}
    return {key: text for key, text in texts.items() if text is not None}


def spoken_reasoning(fields: Fields, text: str, given: dict[str, str], part: str | None, place: str) -> str:
    """Add the reasoning within a content to ``given`` (by field), and return the rest of its ``text``.

    ``part`` is the reasoning that a part of the content holds. Where reasoning is given, a closing tag alone is text.
    """
    if part is None and _CLOSING not in text:  # nearly always
        return text
    key = place.rpartition(".")[2]
    if part is not None:
        given[key] = part
    if given and not opens_with_reasoning(text):
        return text
    reasoning, rest = split_reasoning(text)
    if reasoning is not None:
        given[f"{key} in tags" if part is not None else key] = reasoning
        if opens_with_reasoning(rest):
            fields.fault("data.reasoning.two_reasonings_2", field=place)
    return rest


def agreed(fields: Fields, texts: Mapping[str, str], place: str) -> str | None:
    """Return the reasoning that all ``texts`` of a message hold, which are named by where they stand.

    An empty text gives way to any other. Two that differ are a fault.
    """
    filled = {key: text for key, text in texts.items() if text.strip("\n")}
    if len({text.strip("\n") for text in filled.values()}) > 1:
        (one, text), (other, another), *_ = filled.items()
        fields.fault(
            "data.reasoning.two_reasonings", field=place, one=one, text=shown(text), other=other, another=shown(another)
        )
    return next(iter(filled.values()), next(iter(texts.values()), None))
