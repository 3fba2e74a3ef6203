"""Function calls and the tools they call, in the spellings of the tools that write them.

    {"id": "c1", "type": "function", "function": {"name": "tides", "arguments": "{\\"port\\": \\"Brest\\"}"}}    OpenAI
    {"name": "tides", "arguments": {"port": "Brest"}}        ShareGPT; `parameters` (Llama), `args` (LangChain),
                                                             `input` (Anthropic) in place of `arguments`

    {"type": "function", "function": {"name": "tides", "parameters": {…}}}       a tool, or what is under `function`
    {"name": "tides", "input_schema": {…}}                                       Anthropic; `inputSchema` (MCP)

Any of these, and lists of them, may be JSON in a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weitune.data.conversation import ToolCall
from weitune.data.formats.fields import UNREADABLE, Fields
from weitune.data.problems import shown, shown_name

_ARGUMENTS = ("arguments", "parameters", "args", "input")
_HOLDER_KEYS = frozenset({"type", "id", "call_id", "function", *_ARGUMENTS})
_FUNCTION_KEYS = frozenset({"name", *_ARGUMENTS})
_CALL_KEYS = _HOLDER_KEYS | _FUNCTION_KEYS
_CALL_CURE = 'Write {"name": "…", "arguments": {…}}.'
_TOOL_CURE = 'Write {"type": "function", "function": {"name": "…", "parameters": {…}}}.'
_SCHEMAS = ("input_schema", "inputSchema")
NULLS = "with null in a call or a tool, learned as it stands (`datasets` writes it for a field that a row lacks)"
"""Remark about a row; in JSON a null may be meant, and only tables are known to add some."""
_KWARGS = "additional_kwargs"
"""Where LangChain keeps what the API answered, calls in OpenAI's spelling among it."""
_KWARGS_KEYS = frozenset({"tool_calls", "function_call"})


def read_message_calls(fields: Fields, message: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    """Return the calls under ``tool_calls``, or the one under ``function_call``, OpenAI's first format.

    A message of LangChain may have them only under ``additional_kwargs``.
    """
    calls = _calls(fields, message.get("tool_calls"), f"{where}tool_calls")
    single = message.get("function_call")
    extra = message.get(_KWARGS)
    if isinstance(extra, dict):
        fields.only(extra, _KWARGS_KEYS, f"{where}{_KWARGS}.")
        if not calls and is_empty(single):
            return read_message_calls(fields, extra, f"{where}{_KWARGS}.")
    elif not is_empty(extra):
        fields.unread(_KWARGS, where)
    if is_empty(single):
        return calls
    call = read_call(fields, single, f"{where}function_call")
    if call is None or not calls:
        return (call,) if call else ()
    if [(call.name, call.arguments)] != [(other.name, other.arguments) for other in calls]:
        fields.fault("data.tool_calls.calls_twice", field=f"{where}function_call")
    return calls


def is_empty(value: Any) -> bool:
    """Tell whether an optional field holds nothing: null, an empty list or object, a blank text, or null as text.

    Not a number is how pandas says null.
    """
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value in ([], {}) or (isinstance(value, str) and value.strip() in ("", "null"))


def read_call_text(fields: Fields, value: Any, where: str) -> tuple[ToolCall, ...]:
    """Return the calls of a message that is nothing but calls: JSON of one call or of a list."""
    value = fields.json(value, "a function call", where)
    if value is UNREADABLE:
        return ()
    if isinstance(value, list) and value:
        return _calls(fields, value, where)
    call = read_call(fields, value, where)
    return (call,) if call else ()


def _calls(fields: Fields, value: Any, where: str) -> tuple[ToolCall, ...]:
    if is_empty(value) and value != {}:
        return ()
    calls = fields.json(value, "a list of calls", where)
    if calls is UNREADABLE:
        return ()
    if not isinstance(calls, list):
        fields.fault("data.tool_calls.wrong_type", field=where, calls=shown(calls))
        return ()
    return tuple(call for i, item in enumerate(calls) if (call := read_call(fields, item, f"{where}[{i}]")))


def read_call(fields: Fields, value: Any, where: str) -> ToolCall | None:
    """Return a call, written bare or under ``function``; None after noting a fault."""
    holder = fields.json(value, "a function call", where)
    if holder is UNREADABLE:
        return None
    function = holder.get("function") if isinstance(holder, dict) else None
    bare = function is None
    function = holder if bare else fields.json(function, "a function call", f"{where}.function")
    if function is UNREADABLE:
        return None
    if not isinstance(function, dict):
        fields.fault("data.tool_calls.wrong_type_2", field=where, function=shown(function))
        return None
    fields.only(holder, _CALL_KEYS if bare else _HOLDER_KEYS, f"{where}.")
    places = {f"{where}.": holder}
    if not bare:
        places[f"{where}.function."] = function
        fields.only(function, _FUNCTION_KEYS, f"{where}.function.")
    *_, inner = places
    name = _name(fields, function, inner)
    arguments = _arguments(fields, places)
    key = "call_id" if holder.get("call_id") is not None else "id"
    id_ = fields.optional_text(holder, key, f"{where}.")
    if arguments and _has_null(arguments):
        fields.remark(NULLS)
    return None if arguments is None else ToolCall(name, arguments, id_)


def _name(fields: Fields, function: Mapping[str, Any], where: str) -> str:
    """Return the name of the function that is called, which may not be blank."""
    name = function.get("name", ...)
    if name is None or (isinstance(name, str) and not name.strip()):
        fields.fault("data.tool_calls.empty_name", field=f"{where}name", name=shown(name))
        return ""
    return fields.text(function, "name", where)


def _arguments(fields: Fields, places: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return a call's arguments, {} if none are written anywhere in ``places``; None after noting a fault."""
    found: dict[str, Mapping[str, Any]] = {}
    for where, holder in places.items():
        for key in _ARGUMENTS:
            value = holder.get(key)
            if value is None or (isinstance(value, str) and value.strip() in ("", "null")):
                continue
            arguments = _mapping(fields, value, "an object of arguments", _CALL_CURE, where + key)
            if arguments is None:
                return None
            found[where + key] = arguments
    *_, inner = places
    if not found and (other := _likely_arguments(places)):
        fields.fault(
            "data.tool_calls.missing_field", field=f"{inner}arguments", arguments=", ".join(_ARGUMENTS), other=other
        )
        return None
    values = list(found.values())
    if any(value != values[0] for value in values):
        fields.fault(
            "data.tool_calls.arguments_twice",
            field=next(iter(found)),
            items=" and ".join(f"`{field.rpartition('.')[2]}` with {shown(value)}" for field, value in found.items()),
        )
        return None
    return values[0] if values else {}


def _likely_arguments(places: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the field of a call that may be its arguments under a name of its own, or nothing."""
    for holder in places.values():
        if any(key in holder for key in _ARGUMENTS):
            return ""
    for holder in places.values():
        for key, value in holder.items():
            if key not in _CALL_KEYS and isinstance(value, str | list | dict) and not is_empty(value):
                return f"`{shown_name(key)}` with {shown(value)}"
    return ""


def _mapping(fields: Fields, value: Any, expected: str, fix: str, where: str) -> Mapping[str, Any] | None:
    """Return an object, decoded if it is JSON in a text; None after noting a fault."""
    value = fields.json(value, expected, where)
    if value is UNREADABLE:
        return None
    if not isinstance(value, dict):
        fields.fault("data.tool_calls.wrong_type_3", field=where, expected=expected, value=shown(value), fix=fix)
        return None
    return value if fields.sound(value, where) else None


def read_tools(fields: Fields, row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the schemas under ``tools``, or under ``functions`` as OpenAI first called them."""
    tools = _tools(fields, row.get("tools"), "tools")
    functions = _tools(fields, row.get("functions"), "functions")
    if tools and functions and tools != functions:
        fields.fault("data.tool_calls.tools_twice", field="functions")
    return tools or functions


def _tools(fields: Fields, value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return tool schemas, each under ``function`` as templates expect it."""
    if is_empty(value) and value != {}:
        return ()
    tools = fields.json(value, "a list of tools", where)
    if tools is UNREADABLE:
        return ()
    if not isinstance(tools, list):
        fields.fault("data.tool_calls.wrong_type_4", field=where, tools=shown(tools))
        return ()
    items = [_decoded(fields, item, f"{where}[{i}]") for i, item in enumerate(tools)]
    if UNREADABLE in items or not fields.sound(items, where):
        return ()
    if any(map(_has_null, items)):
        fields.remark(NULLS)
    return tuple(tool for i, item in enumerate(items) if (tool := _tool(fields, item, f"{where}[{i}]")))


def _has_null(value: Any) -> bool:
    """Tell whether a field of an object, at any level, is null."""
    if isinstance(value, dict):
        return any(inner is None or _has_null(inner) for inner in value.values())
    return isinstance(value, list) and any(map(_has_null, value))


def _decoded(fields: Fields, item: Any, where: str) -> Any:
    """Return a tool that is JSON in a text, or whose function is."""
    tool = fields.json(item, "a tool", where)
    if not isinstance(tool, dict) or not isinstance(tool.get("function"), str):
        return tool
    function = fields.json(tool["function"], "a function", f"{where}.function")
    return UNREADABLE if function is UNREADABLE else {**tool, "function": function}


def _tool(fields: Fields, item: Any, where: str) -> Mapping[str, Any] | None:
    schema = item.get("function") if isinstance(item, dict) else None
    if schema is not None:
        fields.only(item, frozenset({"type", "function"}), f"{where}.")
    elif isinstance(item, dict):
        schema = {key: value for key, value in item.items() if not (key == "type" and value in ("function", "custom"))}
    if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
        fields.fault("data.tool_calls.wrong_type_5", field=where, item=shown(item))
        return None
    if "parameters" not in schema:
        schema = {"parameters" if key in _SCHEMAS else key: value for key, value in schema.items()}
    if isinstance(schema.get("parameters"), str):
        parameters = _mapping(fields, schema["parameters"], "a JSON schema", _TOOL_CURE, f"{where}.parameters")
        schema = {**schema, "parameters": parameters}
    return {"type": "function", "function": schema}
