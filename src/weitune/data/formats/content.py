"""The content of a message: a text, or a list of parts, as several tools write them.

    "At noon."
    [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "At noon."}, {"type": "tool_use", "name": …}]
    [{"type": "tool_result", "tool_use_id": "c1", "content": "12:00"}]            in a user's message: a tool's turn

Templates write reasoning, then text, then calls, so parts of an answer in another order are a fault.
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

_KINDS = {
    "text": "text", "input_text": "text", "output_text": "text",
    "thinking": "reasoning", "reasoning": "reasoning",
    "tool_use": "call", "tool_call": "call", "function_call": "call",
    "tool_result": "result",
}  # fmt: skip
"""What parts of each type become."""
_TEXT_TYPES = tuple(kind for kind, becomes in _KINDS.items() if becomes == "text")
_TEXT_KEYS = ("text", "value", "content")
_THOUGHT_KEYS = ("thinking", "reasoning", *_TEXT_KEYS)
_SIGNED = frozenset({"type", "signature"})
"""Besides its text, what a part may have. Anthropic signs reasoning; that is not to be learned."""
_RESULT_KEYS = frozenset({"type", "tool_use_id", "content"})
_ORDER = ("reasoning", "text", "call")
_PART_CURE = 'Write {"type": "text", "text": "…"}; images and sounds cannot be learned from.'
_ENCRYPTED_CURE = "Remove the part, whose text is encrypted, or the row."
_PLACES: Mapping[Role, frozenset[str]] = {
    "system": frozenset({"text"}),
    "user": frozenset({"text", "result"}),
    "assistant": frozenset(_ORDER),
    "tool": frozenset({"text", "result"}),
}
"""What parts a role's message may have."""


@dataclass(slots=True)
class Content:
    """What a message says; ``reasoning`` is None if no part holds any.

    A message with tools' results becomes several ``turns``; for any other there are none here.
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
    """Return what stands under ``key`` of a message: a text or parts, but under ``value`` a text."""
    value = message.get(key)
    if not isinstance(value, list) or key == "value":
        return Content(fields.text(message, key, where))
    parts = [part for i, item in enumerate(value) for part in _part(fields, item, f"{where}{key}[{i}]")]
    for part in parts:
        if part.kind not in _PLACES[role]:
            fields.fault(
                "data.content.wrong_role",
                field=part.place,
                role=role,
                places=", ".join(sorted(_PLACES[role])),
                kind=part.kind,
            )
    if role == "assistant":
        _check_order(fields, parts)
    thoughts = _of(parts, "reasoning")
    return Content(
        "".join(_of(parts, "text")),
        "\n".join(thoughts) if thoughts else None,
        tuple(_of(parts, "call")),
        _turns(parts, role) if role != "assistant" and _of(parts, "result") else [],
    )


def _of(parts: Iterable[_Part], kind: str) -> list[Any]:
    return [part.value for part in parts if part.kind == kind]


def _check_order(fields: Fields, parts: Sequence[_Part]) -> None:
    """Note a fault if a part stands after one that templates write later."""
    reached = 0
    for part in parts:
        rank = _ORDER.index(part.kind) if part.kind in _ORDER else reached
        if rank < reached and (part.kind != "text" or part.value.strip()):
            fields.fault("data.content.parts_out_order", field=part.place, kind=part.kind, order=_ORDER[reached])
        reached = max(reached, rank)


def _turns(parts: Sequence[_Part], role: Role) -> list[Turn]:
    """Return results as turns of tools, and the texts between them as turns of ``role``, in order."""
    turns: list[Turn] = []
    for is_result, group in groupby(parts, lambda part: part.kind == "result"):
        values = [part.value for part in group if part.kind in ("result", "text")]
        if is_result:
            turns += values
        elif "".join(values).strip():
            turns.append(Turn(role, "".join(values)))
    return turns


def _part(fields: Fields, item: Any, place: str) -> list[_Part]:
    """Return what a part holds: one thing, several calls, or nothing after noting a fault."""
    if isinstance(item, str):
        return [_Part("text", fields.characters(item, place), place)]
    if not isinstance(item, dict):
        fields.fault("data.content.wrong_type", field=place, item=shown(item))
        return []
    kind = item.get("type") or "text"
    if not isinstance(kind, str) or kind not in _KINDS:
        fix = _ENCRYPTED_CURE if kind == "redacted_thinking" else _PART_CURE
        fields.fault("data.content.not_text", field=f"{place}.type", item=shown(item["type"]), fix=fix)
        return []
    becomes = _KINDS[kind]
    if becomes == "call":
        return [_Part(becomes, call, place) for call in _calls(fields, item, place)]
    if becomes == "result":
        return [_Part(becomes, _result(fields, item, place), place)]
    keys = _TEXT_KEYS if becomes == "text" else _THOUGHT_KEYS
    return [_Part(becomes, _text(fields, item, keys, place), place)]


def _text(fields: Fields, part: Mapping[str, Any], keys: Sequence[str], place: str) -> str:
    """Return a part's text, under the first of ``keys`` that it has."""
    key = next((key for key in keys if part.get(key) is not None), keys[0])
    _only(fields, part, _SIGNED | {key}, place)
    return _joined(fields, part, key, place)


def _only(fields: Fields, part: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    """Count a part's unread keys, but not those that hold nothing: some tools write every key in every part."""
    if not known.issuperset(part):
        fields.only({key: value for key, value in part.items() if value not in (None, False)}, known, f"{place}.")


def _joined(fields: Fields, part: Mapping[str, Any], key: str, place: str) -> str:
    """Return the text under ``key``, which may be a list of text parts itself."""
    if not isinstance(part.get(key), list):
        return fields.text(part, key, f"{place}.")
    texts = []
    for i, item in enumerate(part[key]):
        spot = f"{place}.{key}[{i}]"
        if isinstance(item, str):
            texts.append(fields.characters(item, spot))
        elif isinstance(item, dict) and (item.get("type") or "text") in _TEXT_TYPES:
            _only(fields, item, _SIGNED | {"text"}, spot)
            texts.append(fields.text(item, "text", f"{spot}."))
        else:
            fields.fault("data.content.not_text_2", field=spot, item=shown(item))
    return "".join(texts)


def _calls(fields: Fields, part: Mapping[str, Any], place: str) -> Sequence[ToolCall]:
    for key in ("value", "content"):
        if key in part:
            fields.only(part, frozenset({"type", key}), f"{place}.")
            return read_call_text(fields, part[key], f"{place}.{key}")
    call = read_call(fields, part, place)
    return (call,) if call else ()


def _result(fields: Fields, part: Mapping[str, Any], place: str) -> Turn:
    """Return what a tool answered, Anthropic's way."""
    _only(fields, part, _RESULT_KEYS, place)
    answers = fields.optional_text(part, "tool_use_id", f"{place}.")
    text = "" if part.get("content") is None else _joined(fields, part, "content", place)
    return Turn("tool", text, tool_call_id=answers)
