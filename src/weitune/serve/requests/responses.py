"""A request to ``/v1/responses``, as the request to ``/v1/chat/completions`` that asks for the same.

    input                     messages
    "text"                    a user's message
    message                   a message; its parts are text
    reasoning, function_call  with the message before them, one assistant's message
    function_call_output      a tool's message

Nothing is stored: a request carries the whole dialogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.serve.errors import ApiError

_MOST_ITEMS = 4096
_SAME = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "chat_template_kwargs", "top_k", "min_p",
         "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "top_logprobs")  # fmt: skip
"""Fields that chats have under the same name; the last ones are not in OpenAI's protocol."""
_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
                      "prompt_cache_retention", "stream_options", "max_tool_calls"})  # fmt: skip
_READ = frozenset({"input", "instructions", "tools", "tool_choice", "max_output_tokens", "text", "truncation",
                   "reasoning", "include", *_SAME})  # fmt: skip
_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
          "response_format": "text.format", "reasoning_effort": "reasoning.effort"}  # fmt: skip
"""What fields of chats are called here."""
_LIKELIHOODS = "message.output_text.logprobs"
_HARMLESS: tuple[Any, ...] = (None, False, 0, "disabled")


def chat_body(body: Any) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Return the body of the chat request, and the names that its fields have here.

    Raises ApiError for a field that is wrong or not supported. What both protocols have alike is checked as a part of
    the chat request.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "serve.request.not_an_object")
    for name, value in body.items():
        if name not in _READ | _IGNORED and value not in _HARMLESS:
            raise ApiError(400, "serve.request.unknown", name=name, param=name, code="unknown_parameter")
    if body.get("truncation") not in (None, "disabled"):
        raise ApiError(400, "serve.request.unsupported", name="truncation", param="truncation")
    if body.get("input") is None:
        raise ApiError(400, "serve.request.missing", name="input", param="input", code="missing_required_parameter")
    chat = {name: body[name] for name in _SAME if body.get(name) is not None}
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if body.get("tools"):
        chat["tools"] = _tools(body["tools"])
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    if body.get("text") is not None:
        chat["response_format"] = _format(body["text"])
    if body.get("reasoning") is not None:
        chat["reasoning_effort"] = _effort(body["reasoning"])
    if body.get("top_logprobs") or _LIKELIHOODS in _include(body.get("include")):
        chat["logprobs"] = True
    chat["messages"], places = _messages(body["input"], body.get("instructions"))
    return chat, {**_NAMES, **places}


def _include(value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ApiError(400, "serve.responses.include", param="include")
    return value or []


def _tools(value: Any) -> Any:
    """Return tools in the form of chats: what describes a function is under ``function``."""
    if not isinstance(value, list):
        return value
    return [
        {"type": tool["type"], "function": {key: item for key, item in tool.items() if key != "type"}}
        if isinstance(tool, dict) and tool.get("type") == "function"
        else tool
        for tool in value
    ]


def _tool_choice(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "function":
        return {"type": "function", "function": {"name": value.get("name")}}
    return value


def _format(value: Any) -> Any:
    """Return ``text`` as a response format."""
    form = value.get("format", {"type": "text"}) if isinstance(value, dict) else value
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {key: item for key, item in form.items() if key != "type"}}
    return form


def _effort(value: Any) -> Any:
    """Return the effort in ``reasoning``; summaries are not written, since the reasoning itself is told."""
    if not isinstance(value, dict):
        raise ApiError(400, "serve.responses.reasoning", param="reasoning")
    for name in value.keys() - {"effort", "summary", "generate_summary"}:
        raise ApiError(400, "serve.request.unknown", name=f"reasoning.{name}", param=f"reasoning.{name}")
    return value.get("effort")


def _messages(value: Any, instructions: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the messages, and which field each of them, and each part of one, comes from."""
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list) or not 0 < len(items) <= _MOST_ITEMS:
        raise ApiError(400, "serve.responses.input", most=_MOST_ITEMS, param="input")
    messages: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
        places |= {"messages[0]": "instructions", "messages[0].content": "instructions"}
    for i, item in enumerate(items):
        places |= _add(messages, item, f"input[{i}]")
    for message in messages:
        if "reasoning_content" in message and message["content"] is None:
            message["content"] = ""  # the answer was cut while it reasoned
    return messages, places


def _add(messages: list[dict[str, Any]], item: Any, where: str) -> dict[str, str]:
    """Add what ``item`` is to ``messages``, and return which of their fields come from it."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    last, new = f"messages[{len(messages) - 1}]", f"messages[{len(messages)}]"
    if kind == "message":
        message = {**item, "role": item.get("role"), "content": _content(item.get("content"))}
        thinking = messages and messages[-1].get("content") is None and "reasoning_content" in messages[-1]
        if message["role"] == "assistant" and thinking:
            messages[-1]["content"] = message["content"]
            return {f"{last}.content": f"{where}.content"}
        messages.append(message)
        return {new: where}
    if kind == "reasoning":
        texts = item.get("content") or []
        if isinstance(texts, list) and all(isinstance(part, dict) for part in texts) and texts:
            text = "".join(str(part.get("text", "")) for part in texts)
            messages.append({"role": "assistant", "content": None, "reasoning_content": text})
            return {new: where}
        return {}
    if kind == "function_call":
        return _add_call(messages, item, where)
    if kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"))})
        return {new: where, f"{new}.content": f"{where}.output", f"{new}.tool_call_id": f"{where}.call_id"}
    raise ApiError(400, "serve.responses.item", where=where, param=where)


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> dict[str, str]:
    """Add a call to the assistant's message before it, or to a new one, and return what comes from it."""
    places: dict[str, str] = {}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
        places[f"messages[{len(messages) - 1}]"] = where
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    calls = messages[-1].setdefault("tool_calls", [])
    calls.append({"id": item.get("call_id"), "type": "function", "function": function})
    call = f"messages[{len(messages) - 1}].tool_calls[{len(calls) - 1}]"
    return {**places, call: where, f"{call}.function": where}


def _content(value: Any) -> Any:
    """Return content with the parts of chats: every kind of text is ``text``."""
    if not isinstance(value, list):
        return value
    return [
        {"type": "text", "text": part.get("text")}
        if isinstance(part, Mapping) and part.get("type") in ("input_text", "output_text", "text")
        else part
        for part in value
    ]
