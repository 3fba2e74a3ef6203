"""The messages and tools of a request: from untrusted JSON to turns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from weitune.data.conversation import Role, ToolCall, Turn
from weitune.data.formats.reasoning import REASONING_KEYS, turn_from_text
from weitune.serve.errors import ApiError

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
                           "tool": "tool"}  # fmt: skip
_KEYS: Mapping[Role, frozenset[str]] = {
    "system": frozenset(), "user": frozenset(), "assistant": frozenset({"tool_calls", *REASONING_KEYS}),
    "tool": frozenset({"tool_call_id"}),
}  # fmt: skip
"""Keys of a message that are read, beside those of every message."""
_COMMON_KEYS = frozenset({"role", "content", "name"})
_IGNORED_KEYS = frozenset({
    "annotations", "cache_control", "copilot_cache_control", "id", "metadata", "opts", "provider_specific_fields",
    "reasoning_details", "status", "thinking_blocks", "type",
})  # fmt: skip
"""Keys that clients add to messages of their own accord or send back with an answer, and that change nothing."""
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_MESSAGES = 4096
_TOOLS = 128
_CALLS = 128
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""Names of functions."""
_DEEPEST = 64
"""Levels of a tool's schema or a call's arguments; templates write them by recursion."""


def read_messages(value: Any) -> tuple[Turn, ...]:
    """Return the turns of ``messages``. Raises ApiError for the first that is wrong."""
    if not isinstance(value, list) or not 0 < len(value) <= _MESSAGES:
        raise ApiError(400, "serve.request.messages", most=_MESSAGES, param="messages")
    turns: list[Turn] = []
    called: set[str | None] = set()
    for i, message in enumerate(value):
        where = f"messages[{i}]"
        turn = _turn(message, where)
        if turn.role == "tool" and turn.tool_call_id not in called:
            raise ApiError(400, "serve.messages.answers_no_call", where=where, param=f"{where}.tool_call_id")
        called.update(call.id for call in turn.tool_calls)
        turns.append(turn)
    if turns[-1].role not in ("user", "tool"):
        raise ApiError(400, "serve.request.last_message", param=f"messages[{len(turns) - 1}].role")
    return tuple(turns)


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the tools that the model may call. Raises ApiError for the first that is wrong."""
    if not isinstance(value, list) or len(value) > _TOOLS:
        raise ApiError(400, "serve.messages.tools", most=_TOOLS, param="tools")
    for i, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not NAME.fullmatch(name):
            raise ApiError(400, "serve.messages.tool", where=f"tools[{i}]", param=f"tools[{i}]")
        parameters, description = function.get("parameters"), function.get("description")
        fits = isinstance(parameters, dict | None) and isinstance(description, str | None)
        if not fits or not _shallow(function, _DEEPEST):
            raise ApiError(400, "serve.messages.tool", where=f"tools[{i}]", param=f"tools[{i}]")
    names = [tool["function"]["name"] for tool in value]
    if len(set(names)) < len(names):
        raise ApiError(400, "serve.messages.tool_twice", param="tools")
    return tuple({"type": "function", "function": _written(tool["function"])} for tool in value)


def read_tool_choice(value: Any) -> str:
    """Return ``auto``, ``none``, ``required``, or ``=NAME`` for the function that must be called."""
    if isinstance(value, str) and value in ("auto", "none", "required"):
        return value
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ApiError(400, "serve.messages.tool_choice", param="tool_choice")
    return f"={name}"


def _written(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return what templates are given of a function: its parts, but for those of the protocol alone."""
    return {key: value for key, value in function.items() if key != "strict" and value is not None}


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise ApiError(400, "serve.request.message_not_an_object", where=where, param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(400, "serve.request.role", where=where, roles=", ".join(_ROLES), param=f"{where}.role")
    calls = _calls(message.get("tool_calls") or [], where) if role == "assistant" else ()
    if message.get("tool_calls") and role != "assistant":
        raise ApiError(400, "serve.messages.calls_of_another", where=where, param=f"{where}.tool_calls")
    _check_keys(message, _ROLES[role], where)
    content = message.get("content")
    if content is None and calls:
        content = ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(map(_is_text, parts)):
        raise ApiError(400, "serve.request.content", where=f"{where}.content", param=f"{where}.content")
    text = whole_characters("".join(part["text"] for part in parts))
    name = _text(message, "name", where) or None
    if role == "tool":
        answered = message.get("tool_call_id")
        return Turn("tool", text, name=name, tool_call_id=answered if isinstance(answered, str) else None)
    turn = turn_from_text(_ROLES[role], text)
    if role == "assistant" and turn.reasoning is None:
        given = [told for key in REASONING_KEYS if (told := _text(message, key, where)) is not None]
        turn = turn._replace(reasoning=next(filter(None, given), given[0] if given else None))
    return turn._replace(tool_calls=calls, name=name)


def _check_keys(message: Mapping[str, Any], role: Role, where: str) -> None:
    """Raise ApiError for a key with a value that is not read."""
    known = _COMMON_KEYS | _KEYS[role] | _IGNORED_KEYS
    for key, value in message.items():
        if key not in known and value is not False and value not in _EMPTY:
            name = f"{where}.{key[:100]}"
            raise ApiError(400, "serve.request.unknown", name=name, param=name, code="unknown_parameter")


def _text(message: Mapping[str, Any], key: str, where: str) -> str | None:
    """Return the text under ``key``, if there is one. Raises ApiError for anything else."""
    text = message.get(key)
    if text is not None and not isinstance(text, str):
        raise ApiError(400, "serve.messages.not_a_string", where=f"{where}.{key}", param=f"{where}.{key}")
    return None if text is None else whole_characters(text)


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    if not isinstance(value, list) or len(value) > _CALLS:
        raise ApiError(400, "serve.messages.call", where=where, param=f"{where}.tool_calls")
    return tuple(_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(value))


def _call(value: Any, where: str) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    name, written = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None, None)
    id_ = value.get("id") if isinstance(value, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(id_, str) or not 0 < len(id_) <= 256:
        raise ApiError(400, "serve.messages.call", where=where, param=where)
    try:
        arguments = json.loads(whole_characters(written)) if isinstance(written, str) else None
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or not _shallow(arguments, _DEEPEST):
        raise ApiError(
            400, "serve.messages.arguments", where=f"{where}.function.arguments", param=f"{where}.function.arguments"
        )
    return ToolCall(name, arguments, whole_characters(id_))


def whole_characters(text: str) -> str:
    """Return ``text`` without halves of surrogate pairs, valid escapes in JSON that no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shallow(value: Any, levels: int) -> bool:
    """Return whether ``value`` has at most so many levels, and only whole characters."""
    if isinstance(value, str):
        return whole_characters(value) == value
    if not isinstance(value, dict | list):
        return True
    items = [*value, *value.values()] if isinstance(value, dict) else value
    return levels > 0 and all(_shallow(item, levels - 1) for item in items)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
