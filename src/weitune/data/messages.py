"""Message lists, as OpenAI's API and ShareGPT's exports write them, to turns.

    {"role": "assistant", "content": "…", "tool_calls": […], "weight": 0}        {"from": "gpt", "value": "…"}

A leading ``<think>…</think>`` in an assistant's text becomes the turn's reasoning, for the chat template to frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from weitune.data.conversation import Role, ToolCall, Turn
from weitune.data.fields import Fields
from weitune.data.problems import shown

_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip
_SPEAKERS: dict[str, Role] = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "function_call": "assistant", "observation": "tool", "tool": "tool",
}  # fmt: skip
_WEIGHTS = frozenset({"weight", "loss_weight"})
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", *_REASONING}) | _WEIGHTS
_SPEECH_KEYS = frozenset({"from", "value"}) | _WEIGHTS
_THOUGHT = re.compile(r"\s*<think>\n?(.*?)\n?</think>\s*", re.DOTALL)


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Return the reasoning and the rest of an assistant's text; the reasoning is None if it does not open the text."""
    if "<think>" in text and (match := _THOUGHT.match(text)):
        return match[1], text[match.end() :]
    return None, text


def read_messages(fields: Fields, messages: Sequence[Any], where: str = "messages") -> tuple[Turn, ...]:
    """Return the turns of OpenAI ``messages``; faults go to ``fields``."""
    return tuple(_message(fields, message, f"{where}[{i}].") for i, message in enumerate(messages))


def _message(fields: Fields, message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        return _no_object(fields, message, where)
    fields.only(message, _MESSAGE_KEYS, f"{where.partition('[')[0]}[].")
    role = _role(fields, message, "role", _ROLES, where)
    calls = _tool_calls(fields, message.get("tool_calls"), f"{where}tool_calls")
    content = "" if calls and message.get("content") is None else _content(fields, message, where)
    reasoning = next((text for key in _REASONING if (text := fields.optional_text(message, key, where))), None)
    if role == "assistant" and reasoning is None:
        reasoning, content = split_reasoning(content)
    weight = fields.weight(message, where)
    name = fields.optional_text(message, "name", where)
    answers = fields.optional_text(message, "tool_call_id", where) if role == "tool" else None
    return Turn(role, content, weight, reasoning, calls, name, answers)


def _content(fields: Fields, message: Mapping[str, Any], where: str) -> str:
    """Return a message's text: a text, or a list of text parts, ``{"type": "text", "text" or "value": …}``."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return fields.text(message, "content", where)
    texts = []
    for i, part in enumerate(parts):
        place = f"{where}content[{i}]."
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, dict):
            fields.fault("wrong type", "a text part", shown(part), _PART_CURE, place[:-1])
        elif part.get("type", "text") != "text":
            fields.fault("not text", "a part of type text", shown(part["type"]), _PART_CURE, f"{place}type")
        else:
            texts.append(fields.text(part, "value" if "value" in part and "text" not in part else "text", place))
    return "".join(texts)


_PART_CURE = 'Write {"type": "text", "text": "…"}; images and sounds cannot be learned from.'


def read_speeches(fields: Fields, speeches: Sequence[Any], where: str = "conversations") -> tuple[Turn, ...]:
    """Return the turns of ShareGPT ``conversations``; faults go to ``fields``."""
    return tuple(_speech(fields, speech, f"{where}[{i}].") for i, speech in enumerate(speeches))


def _speech(fields: Fields, speech: Any, where: str) -> Turn:
    if not isinstance(speech, dict):
        return _no_object(fields, speech, where)
    fields.only(speech, _SPEECH_KEYS, f"{where.partition('[')[0]}[].")
    role = _role(fields, speech, "from", _SPEAKERS, where)
    text = fields.text(speech, "value", where)
    weight = fields.weight(speech, where)
    if speech.get("from") == "function_call":
        called = fields.json(text, "a function call", f"{where}value")
        calls = called if isinstance(called, list) else [called] if called is not None else []
        return Turn(role, "", weight, tool_calls=_tool_calls(fields, calls, f"{where}value"))
    reasoning, content = split_reasoning(text) if role == "assistant" else (None, text)
    return Turn(role, content, weight, reasoning)


def _no_object(fields: Fields, value: object, where: str) -> Turn:
    fields.fault("wrong type", "a message (an object)", shown(value), "Write each message as an object.", where[:-1])
    return Turn("user", "")


def _role(fields: Fields, holder: Mapping[str, Any], key: str, roles: Mapping[str, Role], where: str) -> Role:
    name = fields.text(holder, key, where)
    if name in roles:
        return roles[name]
    if isinstance(holder.get(key), str):
        fields.fault("unknown role", f"one of {', '.join(roles)}", shown(name), "Use one of these names.", where + key)
    return "user"


def _tool_calls(fields: Fields, calls: Any, where: str) -> tuple[ToolCall, ...]:
    if calls is None or calls == []:
        return ()
    if not isinstance(calls, list):
        fields.fault("wrong type", "a list of calls", shown(calls), "Write a list, even for one call.", where)
        return ()
    return tuple(call for i, value in enumerate(calls) if (call := _tool_call(fields, value, f"{where}[{i}]")))


def _tool_call(fields: Fields, value: Any, where: str) -> ToolCall | None:
    """Return a call, written bare (``name``, ``arguments``) or as OpenAI does (under ``function``)."""
    function = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(function, dict):
        fields.fault("wrong type", "a function call (an object)", shown(function), _CALL_CURE, where)
        return None
    name = fields.text(function, "name", f"{where}.")
    fields.decodable(function.get("arguments"), f"{where}.arguments")
    arguments = function.get("arguments", {})
    arguments = fields.json(arguments, "an object of arguments", f"{where}.arguments") if arguments != "" else {}
    if not isinstance(arguments, dict):
        if arguments is not None or function.get("arguments", "") is None:
            fields.fault("wrong type", "an object of arguments", shown(arguments), _CALL_CURE, f"{where}.arguments")
        return None
    return ToolCall(name, arguments, fields.optional_text(value, "id", f"{where}."))


_CALL_CURE = 'Write {"name": "…", "arguments": {…}}.'


def read_tools(fields: Fields, value: Any, where: str = "tools") -> tuple[Mapping[str, Any], ...]:
    """Return tool schemas from a list, or a list as JSON in a text, each under ``function`` as templates expect it."""
    if value is None or value == "":
        return ()
    tools = fields.json(value, "a list of tools", where)
    if tools is None:
        return ()
    if not isinstance(tools, list):
        fields.fault("wrong type", "a list of tools", shown(tools), "Write a list, even for one tool.", where)
        return ()
    fields.decodable(tools, where)
    return tuple(tool for i, item in enumerate(tools) if (tool := _tool(fields, item, f"{where}[{i}]")))


def _tool(fields: Fields, item: Any, where: str) -> Mapping[str, Any] | None:
    schema = item.get("function", item) if isinstance(item, dict) else item
    if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
        fields.fault(
            "wrong type",
            "a tool with a name",
            shown(item),
            'Write {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
            where,
        )
        return None
    return {"type": "function", "function": schema}
