"""JSON inside a string, decoded as strictly as rows are, and checks that a value can be written as JSON in UTF-8.

Everything that a later reader or writer would lose is a fault: repeated keys, NaN and infinite numbers, half of a
surrogate pair, and values nested so deeply that recursive templates and writers fail (Python allows about 1,000 calls).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

from weitune.data.problems import shown
from weitune.messages import say

MAX_DEPTH = 200
"""Levels of objects and lists in a row."""
_MAX_SCHEMA_DEPTH = 100
"""Levels of objects and lists in a call's arguments or a tool's schema."""
_CONTAINERS = frozenset({dict, list, tuple})


def decode(text: str) -> Any:
    """Return the value that ``text`` encodes. Raises ValueError, with a text for a message, if it is not valid."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError(say("data.strict_json.nested_too_deeply")) from None


def repeated_keys(pairs: list[tuple[str, Any]]) -> list[str]:
    """Return the repeated keys in the ``pairs`` of an object, sorted."""
    counts = Counter(key for key, _ in pairs)
    return sorted(key for key, count in counts.items() if count > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(say("data.strict_json.repeated_key", key=repeated_keys(pairs)[0]))
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(say("data.strict_json.not_a_json_value", value=name))


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(say("data.strict_json.number_out_of_range"))
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def too_deep(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Return whether ``value`` has more than ``levels`` levels of objects and lists. Cost: visits each of them once."""
    layer = [value] if type(value) in _CONTAINERS else []
    for _ in range(levels):
        layer = [
            inner
            for container in layer
            for inner in (container.values() if type(container) is dict else container)
            if type(inner) in _CONTAINERS
        ]
        if not layer:
            return False
    return True


def undecodable(text: str) -> bool:
    """Return whether ``text`` contains a byte that did not decode, or half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def unwritable(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Return why ``value`` cannot be written as JSON in UTF-8, as a message's id and values; None if it can be."""
    level = [value]
    for _ in range(_MAX_SCHEMA_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if undecodable(item):
                    return "data.fields.undecodable_text", {}
            elif isinstance(item, dict):
                deeper += item
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, float) and math.isfinite(item):
                continue
            elif item is not None and not isinstance(item, int):
                return "data.fields.not_a_json_value", {"value": shown(item)}
        if not deeper:
            return None
        level = deeper
    return "data.fields.nested_too_deeply", {"levels": _MAX_SCHEMA_DEPTH}
