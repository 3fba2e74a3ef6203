"""The loss weight of a message: a number, or a boolean that includes or excludes it, in the spellings of several tools.

"weight", "loss_weight"     a number of at least 0
"loss", "train"             true or false (or 1 or 0)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from weitune.data.conversation import Role
from weitune.data.formats.fields import Fields
from weitune.data.problems import shown, shown_field

_NUMBERS = ("weight", "loss_weight")
_FLAGS = ("loss", "train")
_KEYS = (*_NUMBERS, *_FLAGS)
_SPANS = "train_detail"
"""Offsets of the characters to learn; axolotl reads them, weitune does not."""
WEIGHT_KEYS = frozenset({*_KEYS, _SPANS})
_LARGEST = sys.float_info.max


def read_weight(fields: Fields, message: Mapping[str, Any], role: Role, where: str) -> float:
    """Return the weight of a message, which is 1 if it has none; keys that contradict each other are a fault.

    Only assistant messages are learned, so a key that asks to learn another message counts as unread.
    """
    if WEIGHT_KEYS.isdisjoint(message):
        return 1.0
    if message.get(_SPANS) and role != "assistant":
        fields.count_unread_name(f"{_SPANS} ({role})", where)
    elif message.get(_SPANS):
        fields.fault("data.loss_weights.spans", field=where + _SPANS, value=shown(message[_SPANS]))
    given = {key: value for key in _KEYS if (value := _weight(fields, message, key, where)) is not None}
    numbers = {value for key, value in given.items() if key in _NUMBERS}
    if len(numbers) > 1 or len({value > 0 for value in given.values()}) > 1:
        shown_weights = ", ".join(shown_field(key, message[key]) for key in given)
        fields.fault("data.loss_weights.two_weights", field=where + next(iter(given)), given=shown_weights)
    if role != "assistant":
        for key, value in given.items():
            if value > 0:
                fields.count_unread_name(f"{key} ({role})", where)
    return next(iter(given.values()), 1.0)


def weight_of_flag(fields: Fields, holder: Mapping[str, Any], key: str, where: str) -> float:
    """Return 0 if the boolean under ``key`` excludes the message from the loss, otherwise 1."""
    value = _weight(fields, holder, key, where)
    return 1.0 if value is None else value


def _weight(fields: Fields, message: Mapping[str, Any], key: str, where: str) -> float | None:
    value = message.get(key)
    if value is None:
        return None
    is_number = key in _NUMBERS
    if isinstance(value, int | float) and (0 <= value <= _LARGEST if is_number else value in (0, 1)):
        return float(value)
    wrong = "data.loss_weights.wrong_weight" if is_number else "data.loss_weights.wrong_flag"
    fields.fault(wrong, field=where + key, value=shown(value))
    return None
