"""The content of a message: a string, or a list of parts in the spellings of several tools.

    "At noon."
    [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "At noon."}, {"type": "tool_use", "name": …}]
    [{"type": "tool_result", "tool_use_id": "c1", "content": "12:00"}]            in a user's message: a tool's turn

Chat templates write reasoning, then text, then calls, so another order of the parts of an answer is a fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from weitune.data.conversation import Role, ToolCall, Turn
from weitune.data.formats.fields import Fields
from weitune.data.formats.tool_calls import read_call, read_call_text
from weitune.data.problems import shown

_TYPES = {
    "text": ("text", "input_text", "output_text"),
    "reasoning": ("thinking", "reasoning"),
    "call": ("tool_use", "tool_call", "function_call"),
    "result": ("tool_result",),
}
"""The types of parts, by what they become."""
_KINDS = {part_type: kind for kind, types in _TYPES.items() for part_type in types}
_TEXT_KEYS = ("text", "value", "content")
_REASONING_KEYS = ("thinking", "reasoning", *_TEXT_KEYS)
_SIGNED = frozenset({"type", "signature"})
"""Keys of a part besides its text. Anthropic signs reasoning; the signature is not learned."""
_RESULT_KEYS = frozenset({"type", "tool_use_id", "content"})
_ORDER = ("reasoning", "text", "call")
_ALLOWED: Mapping[Role, frozenset[str]] = {
    "system": frozenset({"text"}),
    "user": frozenset({"text", "result"}),
    "assistant": frozenset(_ORDER),
    "tool": frozenset({"text", "result"}),
}
"""What the parts of a message may become, by role."""


@dataclass(slots=True)
class Content:
    """The content of a message; ``reasoning`` is None if no part has any.

    ``turns`` is only filled for a message with tool results, which becomes several turns.
    """

    text: str = ""
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    turns: list[Turn] = field(default_factory=list)


class _Part(NamedTuple):
    kind: str
    value: Any
    place: str


def read_content(fields: Fields, message: Mapping[str, Any], key: str, role: Role, where: str) -> Content:
    """Return the content of a message under ``key``: a string or a list of parts; only a string under ``value``."""
    value = message.get(key)
    if not isinstance(value, list) or key == "value":
        return Content(fields.text(message, key, where))
    parts = [part for i, item in enumerate(value) for part in _part(fields, item, f"{where}{key}[{i}]")]
    for part in parts:
        if part.kind not in _ALLOWED[role]:
            allowed = ", ".join(sorted(_ALLOWED[role]))
            fields.fault("data.content.wrong_role", field=part.place, role=role, allowed=allowed, part=part.kind)
    if role == "assistant":
        _check_order(fields, parts)
    thoughts = _values(parts, "reasoning")
    return Content(
        "".join(_values(parts, "text")),
        "\n".join(thoughts) if thoughts else None,
        tuple(_values(parts, "call")),
        _turns(parts, role) if role != "assistant" and _values(parts, "result") else [],
    )


def _values(parts: Iterable[_Part], kind: str) -> list[Any]:
    return [part.value for part in parts if part.kind == kind]


def _check_order(fields: Fields, parts: Sequence[_Part]) -> None:
    reached = 0
    for part in parts:
        rank = _ORDER.index(part.kind) if part.kind in _ORDER else reached
        if rank < reached and (part.kind != "text" or part.value.strip()):
            fields.fault("data.content.parts_out_of_order", field=part.place, part=part.kind, before=_ORDER[reached])
        reached = max(reached, rank)


def _turns(parts: Sequence[_Part], role: Role) -> list[Turn]:
    turns: list[Turn] = []
    for is_result, group in groupby(parts, lambda part: part.kind == "result"):
        values = [part.value for part in group if part.kind in ("result", "text")]
        if is_result:
            turns += values
        elif "".join(values).strip():
            turns.append(Turn(role, "".join(values)))
    return turns


def _part(fields: Fields, item: Any, place: str) -> list[_Part]:
    """Return the parts in an item of the content: one, several calls, or none after noting a fault."""
    if isinstance(item, str):
        return [_Part("text", fields.checked(item, place), place)]
    if not isinstance(item, dict):
        fields.fault("data.content.wrong_type", field=place, value=shown(item))
        return []
    part_type = item.get("type") or "text"
    if not isinstance(part_type, str) or part_type not in _KINDS:
        fault = "data.content.encrypted" if part_type == "redacted_thinking" else "data.content.unknown_type"
        fields.fault(fault, field=f"{place}.type", value=shown(item["type"]))
        return []
    kind = _KINDS[part_type]
    if kind == "call":
        return [_Part(kind, call, place) for call in _calls(fields, item, place)]
    if kind == "result":
        return [_Part(kind, _result(fields, item, place), place)]
    keys = _TEXT_KEYS if kind == "text" else _REASONING_KEYS
    key = next((key for key in keys if item.get(key) is not None), keys[0])
    _count_unread(fields, item, _SIGNED | {key}, place)
    return [_Part(kind, _joined(fields, item, key, place), place)]


def _count_unread(fields: Fields, part: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    """Count a part's unread keys, unless they are null or false: some tools write every key in every part."""
    given = {key: value for key, value in part.items() if value not in (None, False)}
    fields.count_unread(given, known, f"{place}.")


def _joined(fields: Fields, part: Mapping[str, Any], key: str, place: str) -> str:
    if not isinstance(part.get(key), list):
        return fields.text(part, key, f"{place}.")
    texts = []
    for i, item in enumerate(part[key]):
        spot = f"{place}.{key}[{i}]"
        if isinstance(item, str):
            texts.append(fields.checked(item, spot))
        elif isinstance(item, dict) and (item.get("type") or "text") in _TYPES["text"]:
            _count_unread(fields, item, _SIGNED | {"text"}, spot)
            texts.append(fields.text(item, "text", f"{spot}."))
        else:
            fields.fault("data.content.not_text", field=spot, value=shown(item))
    return "".join(texts)


def _calls(fields: Fields, part: Mapping[str, Any], place: str) -> Sequence[ToolCall]:
    for key in ("value", "content"):
        if key in part:
            fields.count_unread(part, frozenset({"type", key}), f"{place}.")
            return read_call_text(fields, part[key], f"{place}.{key}")
    return read_call(fields, part, place)


def _result(fields: Fields, part: Mapping[str, Any], place: str) -> Turn:
    _count_unread(fields, part, _RESULT_KEYS, place)
    call_id = fields.optional_text(part, "tool_use_id", f"{place}.")
    text = "" if part.get("content") is None else _joined(fields, part, "content", place)
    return Turn("tool", text, tool_call_id=call_id)
