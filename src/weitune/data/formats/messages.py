"""Turns from lists of messages in the spellings of OpenAI's API, ShareGPT's exports and other tools.

    {"role": "assistant", "content": "…", "tool_calls": […], "weight": 0}        {"from": "gpt", "value": "…"}
    {"role": "tool_call", "content": "{\\"name\\": …}"}                          {"from": "function_call", "value": …}
    {"type": "function_call", "name": "tides", "arguments": "{…}"}               an item of OpenAI's Responses

A message of calls only is joined with the answer right before it, since a model writes both in one turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from weitune.data.conversation import Role, ToolCall, Turn
from weitune.data.formats.content import read_content
from weitune.data.formats.fields import Fields, is_empty
from weitune.data.formats.loss_weights import WEIGHT_KEYS, read_weight
from weitune.data.formats.reasoning import REASONING_KEYS, agreed, content_reasoning, field_reasoning, split_reasoning
from weitune.data.formats.tool_calls import one_of_two, read_call, read_call_text, read_message_calls
from weitune.data.problems import shown
from weitune.messages import say

_NAMES: Mapping[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "ai", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "tool_response", "function_call_output"),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
_CALLS = frozenset({"function_call", "tool_call"})
"""Names of the role of a message of calls only."""
_ROLE_KEYS = ("role", "from", "type")
_CONTENT_KEYS = ("content", "value")
_CALL_KEYS = ("tool_calls", "function_call")
_ANSWER_KEYS = frozenset((*REASONING_KEYS, *_CALL_KEYS))
"""Fields that only an assistant message has."""
_KEYS = _ANSWER_KEYS | WEIGHT_KEYS | {"name", "tool_call_id"}


def read_messages(fields: Fields, messages: Sequence[Any], where: str = "messages") -> tuple[Turn, ...]:
    """Return the turns of ``messages``; faults are noted in ``fields``."""
    turns: list[Turn] = []
    for i, message in enumerate(messages):
        place = f"{where}[{i}]"
        new = read_message(fields, message, place)
        if turns and new[0].role == "system" and turns[-1].role != "system":
            refuse_late_system(fields, place)
        if turns and turns[-1].role == "assistant" and _is_calls(message):
            turns[-1] = _with_calls(fields, turns[-1], new[0], place)
        else:
            turns += new
    return tuple(turns)


def refuse_late_system(fields: Fields, where: str) -> None:
    """Note the fault that a system prompt follows other turns."""
    fields.fault("data.messages.late_system_prompt", field=where)


def read_message(fields: Fields, message: Any, place: str) -> list[Turn]:
    """Return the turn of one message, or the turns of one with results of tools; faults are noted in ``fields``."""
    if not isinstance(message, dict):
        fields.fault("data.messages.wrong_type", field=place, value=shown(message))
        return [Turn("user", "")]
    where = f"{place}."
    role_key = _role_key(message)
    known_role = _role(fields, message, role_key, where)
    role = known_role or "user"
    if role_key == "type" and role == "assistant" and _is_calls(message):
        return [Turn("assistant", "", tool_calls=read_call(fields, message, place))]
    content_key = _content_key(message, role_key)
    known = _known(role_key, content_key, role)
    fields.count_unread(message, known | {"type"} if message.get("type") == "message" else known, where)
    if role != "tool" and not is_empty(message.get("tool_call_id")):
        fields.count_unread_name("tool_call_id", where)
    if role == "assistant":
        return [_answer(fields, message, content_key, where)]
    for key in sorted(_ANSWER_KEYS.intersection(message)):
        if known_role and not is_empty(message[key]):
            fields.fault("data.messages.field_of_another_role", field=where + key, name=key, role=role)
    content = read_content(fields, message, content_key, role, where)
    weight = read_weight(fields, message, role, where)
    name = fields.optional_text(message, "name", where)
    if content.turns:
        return [turn._replace(weight=weight, name=name) if turn.role == role else turn for turn in content.turns]
    id_key = "call_id" if role_key == "type" and is_empty(message.get("tool_call_id")) else "tool_call_id"
    call_id = fields.optional_text(message, id_key, where) if role == "tool" else None
    return [Turn(role, content.text, weight, name=name, tool_call_id=call_id)]


def _role_key(message: Mapping[str, Any]) -> str:
    return next((key for key in _ROLE_KEYS if key in message), "role")


def _content_key(message: Mapping[str, Any], role_key: str) -> str:
    if role_key == "type" and "output" in message:  # the result of a function in OpenAI's Responses API
        return "output"
    return next((key for key in _CONTENT_KEYS if key in message), "value" if role_key == "from" else "content")


@lru_cache(maxsize=64)
def _known(role_key: str, content_key: str, role: Role) -> frozenset[str]:
    keys = _KEYS | {role_key, content_key}
    if role == "assistant":
        return keys | {"additional_kwargs"}
    return keys | {"call_id"} if role == "tool" and role_key == "type" else keys


def _role(fields: Fields, message: Mapping[str, Any], key: str, where: str) -> Role | None:
    """Return the role under ``key``; None after noting a fault."""
    name = fields.text(message, key, where)
    if name in _ROLES:
        return _ROLES[name]
    if isinstance(message.get(key), str):
        fields.fault("data.messages.unknown_role", field=where + key, known=", ".join(_ROLES), role=shown(name))
    return None


def _is_calls(message: Any) -> bool:
    role = message.get(_role_key(message)) if isinstance(message, dict) else None
    return isinstance(role, str) and role in _CALLS


def _answer(fields: Fields, message: Mapping[str, Any], content_key: str, where: str) -> Turn:
    calls = read_message_calls(fields, message, where)
    reasoning = field_reasoning(fields, message, where)
    text = ""
    if _is_calls(message):
        in_tags, content_calls = _call_content(fields, message, content_key, where)
        reasoning |= {} if in_tags is None else {f"`{content_key}`": in_tags}
        calls += content_calls
    elif message.get(content_key) is not None or not (calls or _has_calls(message)):
        content = read_content(fields, message, content_key, "assistant", where)
        calls = one_of_two(fields, calls, content.calls, where + content_key)
        text = content_reasoning(fields, content.text, reasoning, content.reasoning, where + content_key)
    weight = read_weight(fields, message, "assistant", where)
    thought = agreed(fields, reasoning, where.rstrip("."))
    return Turn("assistant", text, weight, thought, calls, fields.optional_text(message, "name", where))


def _has_calls(message: Mapping[str, Any]) -> bool:
    return any(not is_empty(message.get(key)) for key in _CALL_KEYS)


def _call_content(
    fields: Fields, message: Mapping[str, Any], content_key: str, where: str
) -> tuple[str | None, tuple[ToolCall, ...]]:
    value, reasoning = message.get(content_key), None
    if not isinstance(value, dict | list):
        value = fields.text(message, content_key, where)
        if value.lstrip().startswith("<"):
            reasoning, value = split_reasoning(value)
    return reasoning, read_call_text(fields, value, where + content_key)


def _with_calls(fields: Fields, before: Turn, calls: Turn, place: str) -> Turn:
    if before.weight != calls.weight:
        fields.fault("data.messages.two_weights", field=place, before=before.weight, here=calls.weight)
    here, earlier = say("data.messages.this_message"), say("data.messages.message_before")
    given = {where: text for where, text in ((earlier, before.reasoning), (here, calls.reasoning)) if text is not None}
    name = calls.name if before.name is None else before.name
    all_calls = before.tool_calls + calls.tool_calls
    return before._replace(reasoning=agreed(fields, given, place), tool_calls=all_calls, name=name)
