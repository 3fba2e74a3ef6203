"""The content of a message: a string, or a list of parts as several tools write them.

    "At noon."
    [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "At noon."}, {"type": "tool_use", "name": …}]
    [{"type": "tool_result", "tool_use_id": "c1", "content": "12:00"}]            in a user's message: a tool's turn

Chat templates write reasoning, then text, then calls, so parts of an answer in another order are a fault.
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
"""What a part of each type becomes."""
_TEXT_TYPES = tuple(kind for kind, becomes in _KINDS.items() if becomes == "text")
_TEXT_KEYS = ("text", "value", "content")
_THOUGHT_KEYS = ("thinking", "reasoning", *_TEXT_KEYS)
_SIGNED = frozenset({"type", "signature"})
"""What a part may have besides its text. Anthropic signs reasoning; the signature is not learned."""
_RESULT_KEYS = frozenset({"type", "tool_use_id", "content"})
_ORDER = ("reasoning", "text", "call")
_ALLOWED: Mapping[Role, frozenset[str]] = {
    "system": frozenset({"text"}),
    "user": frozenset({"text", "result"}),
    "assistant": frozenset(_ORDER),
    "tool": frozenset({"text", "result"}),
}
"""What the parts of a message may become, by its role."""


@dataclass(slots=True)
class Content:
    """What a message contains; ``reasoning`` is None if no part has any.

    ``turns`` are those of a message with tool results, which becomes several turns; for any other message it is empty.
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
    """Return what a message has under ``key``: a string or a list of parts, but under ``value`` only a string."""
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
    """Note a fault if a part stands after one that chat templates write later."""
    reached = 0
    for part in parts:
        rank = _ORDER.index(part.kind) if part.kind in _ORDER else reached
        if rank < reached and (part.kind != "text" or part.value.strip()):
            fields.fault("data.content.parts_out_of_order", field=part.place, part=part.kind, before=_ORDER[reached])
        reached = max(reached, rank)


def _turns(parts: Sequence[_Part], role: Role) -> list[Turn]:
    """Return results as tool turns, and the texts between them as turns of ``role``, in order."""
    turns: list[Turn] = []
    for is_result, group in groupby(parts, lambda part: part.kind == "result"):
        values = [part.value for part in group if part.kind in ("result", "text")]
        if is_result:
            turns += values
        elif "".join(values).strip():
            turns.append(Turn(role, "".join(values)))
    return turns


def _part(fields: Fields, item: Any, place: str) -> list[_Part]:
    """Return what an item of the content becomes: one part, several calls, or nothing after noting a fault."""
    if isinstance(item, str):
        return [_Part("text", fields.characters(item, place), place)]
    if not isinstance(item, dict):
        fields.fault("data.content.wrong_type", field=place, value=shown(item))
        return []
    kind = item.get("type") or "text"
    if not isinstance(kind, str) or kind not in _KINDS:
        fault = "data.content.encrypted" if kind == "redacted_thinking" else "data.content.unknown_type"
        fields.fault(fault, field=f"{place}.type", value=shown(item["type"]))
        return []
    becomes = _KINDS[kind]
    if becomes == "call":
        return [_Part(becomes, call, place) for call in _calls(fields, item, place)]
    if becomes == "result":
        return [_Part(becomes, _result(fields, item, place), place)]
    keys = _TEXT_KEYS if becomes == "text" else _THOUGHT_KEYS
    return [_Part(becomes, _text(fields, item, keys, place), place)]


def _text(fields: Fields, part: Mapping[str, Any], keys: Sequence[str], place: str) -> str:
    """Return the text of a part, under the first of ``keys`` that it has."""
    key = next((key for key in keys if part.get(key) is not None), keys[0])
    _only(fields, part, _SIGNED | {key}, place)
    return _joined(fields, part, key, place)


def _only(fields: Fields, part: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    """Count a part's unread keys that are not null or false: some tools write every key in every part."""
    if not known.issuperset(part):
        fields.only({key: value for key, value in part.items() if value not in (None, False)}, known, f"{place}.")


def _joined(fields: Fields, part: Mapping[str, Any], key: str, place: str) -> str:
    """Return the text under ``key``, which may itself be a list of text parts."""
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
            fields.fault("data.content.not_text", field=spot, value=shown(item))
    return "".join(texts)


def _calls(fields: Fields, part: Mapping[str, Any], place: str) -> Sequence[ToolCall]:
    for key in ("value", "content"):
        if key in part:
            fields.only(part, frozenset({"type", key}), f"{place}.")
            return read_call_text(fields, part[key], f"{place}.{key}")
    return read_call(fields, part, place)


def _result(fields: Fields, part: Mapping[str, Any], place: str) -> Turn:
    """Return the tool turn of a ``tool_result`` part, as Anthropic's API has it."""
    _only(fields, part, _RESULT_KEYS, place)
    call_id = fields.optional_text(part, "tool_use_id", f"{place}.")
    text = "" if part.get("content") is None else _joined(fields, part, "content", place)
    return Turn("tool", text, tool_call_id=call_id)
