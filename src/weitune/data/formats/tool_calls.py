"""Function calls and tools, in the spellings of several APIs and libraries.

    {"id": "c1", "type": "function", "function": {"name": "tides", "arguments": "{\\"port\\": \\"Brest\\"}"}}    OpenAI
    {"name": "tides", "arguments": {"port": "Brest"}}        ShareGPT; `parameters` (Llama), `args` (LangChain),
                                                             `input` (Anthropic) in place of `arguments`

    {"type": "function", "function": {"name": "tides", "parameters": {…}}}       a tool, or what is under `function`
    {"name": "tides", "input_schema": {…}}                                       Anthropic; `inputSchema` (MCP)

Any of these, and lists of them, may be JSON in a string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weitune.data.conversation import ToolCall
from weitune.data.formats.fields import UNREADABLE, Fields, is_empty
from weitune.data.problems import shown, shown_field
from weitune.messages import say

_ARGUMENTS = ("arguments", "parameters", "args", "input")
_HOLDER_KEYS = frozenset({"type", "id", "call_id", "function", *_ARGUMENTS})
_FUNCTION_KEYS = frozenset({"name", *_ARGUMENTS})
_CALL_KEYS = _HOLDER_KEYS | _FUNCTION_KEYS
_OBJECT_OF_ARGUMENTS = "data.tool_calls.object_of_arguments", "data.tool_calls.arguments_not_an_object"
_JSON_SCHEMA = "data.tool_calls.json_schema", "data.tool_calls.parameters_not_a_schema"
"""Message ids: what a value should be, and the fault that it is something else."""
_SCHEMAS = ("input_schema", "inputSchema")
_NULLS = "data.tool_calls.null_in_a_call_or_tool"
"""A remark, not a fault: a null in JSON may be intended; only tables are known to add nulls."""
_KWARGS = "additional_kwargs"
"""The field of a LangChain message for the raw response of the API, which may contain calls in OpenAI's spelling."""
_KWARGS_KEYS = frozenset({"tool_calls", "function_call"})


def read_message_calls(fields: Fields, message: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    """Return the calls under ``tool_calls``, or the one under ``function_call`` (OpenAI's first format).

    A LangChain message may have them only under ``additional_kwargs``.
    """
    calls = _calls(fields, message.get("tool_calls"), f"{where}tool_calls")
    single = message.get("function_call")
    extra = message.get(_KWARGS)
    if isinstance(extra, dict):
        fields.count_unread(extra, _KWARGS_KEYS, f"{where}{_KWARGS}.")
        if not calls and is_empty(single):
            return read_message_calls(fields, extra, f"{where}{_KWARGS}.")
    elif not is_empty(extra):
        fields.count_unread_name(_KWARGS, where)
    if is_empty(single):
        return calls
    single_call = read_call(fields, single, f"{where}function_call")
    return one_of_two(fields, calls, single_call, f"{where}function_call")


def one_of_two(
    fields: Fields, calls: tuple[ToolCall, ...], others: tuple[ToolCall, ...], place: str
) -> tuple[ToolCall, ...]:
    """Return the calls of a message that may have them twice, the ``others`` at ``place``; note if they differ."""
    if calls and others and [call[:2] for call in others] != [call[:2] for call in calls]:  # apart from their ids
        fields.fault("data.tool_calls.calls_twice", field=place)
    return calls or others


def read_call_text(fields: Fields, value: Any, where: str) -> tuple[ToolCall, ...]:
    """Return the calls in the content of a message of calls only: one call or a list, or JSON of either."""
    value = fields.json(value, "data.tool_calls.function_call", where)
    if value is UNREADABLE:
        return ()
    return _calls(fields, value, where) if isinstance(value, list) and value else read_call(fields, value, where)


def _calls(fields: Fields, value: Any, where: str) -> tuple[ToolCall, ...]:
    items = _list(fields, value, "data.tool_calls.list_of_calls", where)
    return tuple(call for i, item in enumerate(items) for call in read_call(fields, item, f"{where}[{i}]"))


def _list(fields: Fields, value: Any, what: str, where: str) -> Sequence[Any]:
    """Return a list, decoded if it is JSON in a string; () if it is empty or after noting a fault."""
    if is_empty(value) and value != {}:
        return ()
    items = fields.json(value, what, where)
    if isinstance(items, list):
        return items
    if items is not UNREADABLE:
        fields.fault("data.tool_calls.not_a_list", field=where, expected=say(what), value=shown(items))
    return ()


def read_call(fields: Fields, value: Any, where: str) -> tuple[ToolCall, ...]:
    """Return one call, whose name and arguments may be under ``function``; nothing after noting a fault."""
    function = holder = fields.json(value, "data.tool_calls.function_call", where)
    nested = isinstance(holder, dict) and holder.get("function") is not None
    if nested:
        function = fields.json(holder["function"], "data.tool_calls.function_call", f"{where}.function")
    if not isinstance(function, dict):
        if function is not UNREADABLE:
            fields.fault("data.tool_calls.not_a_call", field=where, value=shown(function))
        return ()
    fields.count_unread(holder, _HOLDER_KEYS if nested else _CALL_KEYS, f"{where}.")
    places = {f"{where}.": holder}
    if nested:
        places[f"{where}.function."] = function
        fields.count_unread(function, _FUNCTION_KEYS, f"{where}.function.")
    *_, inner = places
    name = _name(fields, function, inner)
    arguments = _arguments(fields, places)
    key = "call_id" if holder.get("call_id") is not None else "id"
    id_ = fields.optional_text(holder, key, f"{where}.")
    if arguments and _has_null(arguments):
        fields.remark(_NULLS)
    return () if arguments is None else (ToolCall(name, arguments, id_),)


def _name(fields: Fields, function: Mapping[str, Any], where: str) -> str:
    name = function.get("name", ...)
    if name is None or (isinstance(name, str) and not name.strip()):
        fields.fault("data.tool_calls.empty_name", field=f"{where}name", name=shown(name))
        return ""
    return fields.text(function, "name", where)


def _arguments(fields: Fields, places: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the arguments of a call, {} if it has none in any of ``places``; None after noting a fault."""
    given: dict[str, Mapping[str, Any]] = {}
    for where, holder in places.items():
        for key in _ARGUMENTS:
            value = holder.get(key)
            if value is None or (isinstance(value, str) and value.strip() in ("", "null")):
                continue
            arguments = _object(fields, value, *_OBJECT_OF_ARGUMENTS, where + key)
            if arguments is None:
                return None
            given[where + key] = arguments
    *_, inner = places
    if not given and (other := _likely_arguments(places)) is not None:
        names = {"known": ", ".join(_ARGUMENTS), "other": shown_field(*other)}
        fields.fault("data.tool_calls.misnamed_arguments", field=f"{inner}arguments", **names)
        return None
    values = list(given.values())
    if any(value != values[0] for value in values):
        shown_values = ", ".join(shown_field(at.rpartition(".")[2], value) for at, value in given.items())
        fields.fault("data.tool_calls.arguments_twice", field=next(iter(given)), arguments=shown_values)
        return None
    return values[0] if values else {}


def _likely_arguments(places: Mapping[str, Mapping[str, Any]]) -> tuple[str, Any] | None:
    """Return name and value of a field that may contain a call's arguments under an unknown name, or None."""
    if any(key in holder for holder in places.values() for key in _ARGUMENTS):
        return None
    for key, value in (item for holder in places.values() for item in holder.items()):
        if key not in _CALL_KEYS and isinstance(value, str | list | dict) and not is_empty(value):
            return key, value
    return None


def _object(fields: Fields, value: Any, what: str, wrong_type: str, where: str) -> Mapping[str, Any] | None:
    """Return an object, decoded if it is JSON in a string; None after noting a fault (``wrong_type`` or another)."""
    value = fields.json(value, what, where)
    if isinstance(value, dict):
        return value if fields.writable(value, where) else None
    if value is not UNREADABLE:
        fields.fault(wrong_type, field=where, value=shown(value))
    return None


def read_tools(fields: Fields, row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the tool schemas under ``tools``, or under ``functions``, OpenAI's first name for them."""
    tools = _tools(fields, row.get("tools"), "tools")
    functions = _tools(fields, row.get("functions"), "functions")
    if tools and functions and tools != functions:
        fields.fault("data.tool_calls.tools_twice", field="functions")
    return tools or functions


def _tools(fields: Fields, value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return tool schemas, each under ``function``, where chat templates expect it."""
    items = _list(fields, value, "data.tool_calls.list_of_tools", where)
    items = [_decoded(fields, item, f"{where}[{i}]") for i, item in enumerate(items)]
    if not items or UNREADABLE in items or not fields.writable(items, where):
        return ()
    if any(map(_has_null, items)):
        fields.remark(_NULLS)
    return tuple(tool for i, item in enumerate(items) if (tool := _tool(fields, item, f"{where}[{i}]")))


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(inner is None or _has_null(inner) for inner in value.values())
    return isinstance(value, list) and any(map(_has_null, value))


def _decoded(fields: Fields, item: Any, where: str) -> Any:
    tool = fields.json(item, "data.tool_calls.tool", where)
    if not isinstance(tool, dict) or not isinstance(tool.get("function"), str):
        return tool
    function = fields.json(tool["function"], "data.tool_calls.function", f"{where}.function")
    return UNREADABLE if function is UNREADABLE else {**tool, "function": function}


def _tool(fields: Fields, item: Any, where: str) -> Mapping[str, Any] | None:
    schema = item.get("function") if isinstance(item, dict) else None
    if schema is not None:
        fields.count_unread(item, frozenset({"type", "function"}), f"{where}.")
    elif isinstance(item, dict):
        schema = {key: value for key, value in item.items() if not (key == "type" and value in ("function", "custom"))}
    if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
        fields.fault("data.tool_calls.not_a_tool", field=where, value=shown(item))
        return None
    if "parameters" not in schema:
        schema = {"parameters" if key in _SCHEMAS else key: value for key, value in schema.items()}
    if isinstance(schema.get("parameters"), str):
        parameters = _object(fields, schema["parameters"], *_JSON_SCHEMA, f"{where}.parameters")
        schema = {**schema, "parameters": parameters}
    return {"type": "function", "function": schema}
