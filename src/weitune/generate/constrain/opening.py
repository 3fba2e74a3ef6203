"""Where an answer that must be JSON begins: behind all that the template writes before the content of an answer."""

from __future__ import annotations

from weitune.data.calls.derive import answer_form
from weitune.data.frame.encode import Draft, Text
from weitune.data.frame.framing import Framing
from weitune.errors import InputError


def content_opening(framing: Framing) -> tuple[int, ...]:
    """Return the tokens that follow a prompt before the content of an answer without reasoning.

    Most templates write nothing there. gpt-oss's opens a channel (``<|channel|>final<|message|>``), Qwen3's writes an
    empty block of reasoning. Raises InputError if the prompt opens the reasoning of an answer, since content is not
    what comes next then.
    """
    form, marks = answer_form(framing)
    if form.begins_in_reasoning:
        raise InputError("generate.opening.reasoning")
    tokens: list[int] = []
    for piece in marks.pieces(form.plain_opening):
        if isinstance(piece, int):
            tokens.append(piece)
        else:
            tokens += framing.encode([Draft((Text(piece, bare=True),))])[0].input_ids
    return tuple(tokens)
