"""Turns from pairs of question and answer: Alpaca's ``history`` and the ``conversation`` of XTuner and ms-swift.

"history": [["question", "answer"], …]
"conversation": [{"system": "…", "input": "question", "output": "answer"}, …]        or human and assistant
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weitune.data.conversation import Turn
from weitune.data.formats.fields import UNREADABLE, Fields
from weitune.data.formats.loss_weights import weight_of_flag
from weitune.data.formats.messages import refuse_late_system
from weitune.data.formats.reasoning import content_reasoning
from weitune.data.problems import shown

_PAIRS = (("input", "output"), ("human", "assistant"))
_LEARNED = "output_with_loss"


def answer(fields: Fields, text: str, place: str, weight: float = 1.0) -> Turn:
    """Return the assistant's turn with ``text`` as its content, without the reasoning in tags before it."""
    given: dict[str, str] = {}
    content = content_reasoning(fields, text, given, None, place)
    return Turn("assistant", content, weight, next(iter(given.values()), None))


def read_history(fields: Fields, value: Any) -> Sequence[Turn]:
    """Return the turns under ``history``: a list of pairs, which may be JSON in a string, or nothing."""
    if isinstance(value, str):
        if value.strip() in ("", "null"):
            return ()
        if value.lstrip().startswith("["):
            value = fields.json(value, "data.pairs.list_of_pairs", "history")
    if value is None or value == [] or value is UNREADABLE:
        return ()
    turns = []
    for i, pair in enumerate(value if isinstance(value, list) else [value]):
        place = f"history[{i}]"
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            question, text = (fields.checked(text, place) for text in pair)
            turns += [Turn("user", question), answer(fields, text, place)]
        else:
            fields.fault("data.pairs.not_a_pair", field=place, value=shown(pair))
    return turns


def pair_keys(items: Sequence[Any]) -> tuple[str, str] | None:
    """Return the keys of question and answer in the first of ``items``; None if it is not a pair."""
    first = items[0] if items else None
    if not isinstance(first, dict) or not {"role", "from", "type"}.isdisjoint(first):
        return None
    return next((pair for pair in _PAIRS if pair[0] in first and pair[1] in first), None)


def read_pairs(fields: Fields, items: Sequence[Any], names: tuple[str, str], where: str) -> Sequence[Turn]:
    """Return the turns of ``items``, each an object with a question and an answer under ``names``."""
    question, answered = names
    known = frozenset({question, answered, "system", _LEARNED})
    turns: list[Turn] = []
    for i, item in enumerate(items):
        place = f"{where}[{i}]."
        if not isinstance(item, dict):
            values = {"value": shown(item), "question": question, "answer": answered}
            fields.fault("data.pairs.not_an_object", field=place[:-1], **values)
            continue
        fields.count_unread(item, known, place)
        if system := fields.optional_text(item, "system", place):
            if turns:
                refuse_late_system(fields, f"{place}system")
            turns.append(Turn("system", system))
        turns.append(Turn("user", fields.text(item, question, place)))
        text = fields.text(item, answered, place)
        turns.append(answer(fields, text, place + answered, weight_of_flag(fields, item, _LEARNED, place)))
    return turns
