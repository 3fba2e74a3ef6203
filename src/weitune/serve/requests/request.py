"""A chat request: from untrusted JSON to values that are in range.

A field is either read, or ignored because it changes no answer, or refused because it would change the answer. Unknown
fields are refused too, so that misspelled ones are noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weitune.data.conversation import Conversation
from weitune.errors import InputError
from weitune.export.llama_models import LlamaModel
from weitune.generate.constrain.schema import ANY_OBJECT
from weitune.generate.sampling import Sampling
from weitune.serve.errors import ApiError
from weitune.serve.requests.messages import read_messages, read_tool_choice, read_tools

_IGNORED = frozenset({"user", "store", "metadata", "service_tier", "safety_identifier",
                      "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "verbosity"})  # fmt: skip
_REFUSED = frozenset({"functions", "function_call", "audio", "modalities", "prediction",
                      "web_search_options"})  # fmt: skip
_HARMLESS: tuple[Any, ...] = (None, False, 0, [], {}, "none", "auto", {"type": "text"}, ["text"])
"""Values of a refused field that have no effect."""
_STOP_STRINGS = 16
_STOP_CHARACTERS = 256
_BIASES = 1024
_TEMPLATE_ARGUMENTS = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may ask for."""

    max_tokens: int = 2048
    """Longest answer, in tokens."""
    choices: int = 4
    """Answers to one request (``n``)."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid request."""

    model: LlamaModel
    conversation: Conversation
    sampling: Sampling
    stop: tuple[str, ...] = ()
    """Strings that end an answer and are not part of it."""
    choices: int = 1
    stream: bool = False
    include_usage: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options that go to the engine unchanged: penalties and logit biases."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are not sampled."""
    tool_choice: str = "auto"
    """``auto``, ``none``, ``required``, or ``=NAME``."""
    parallel_calls: bool = True
    logprobs: int | None = None
    """How many alternatives to each token are told; None: nothing about likelihood is."""
    schema: Mapping[str, Any] | None = None
    """What the answer must fit, as JSON."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template for this request alone."""


def parse_request(body: Any, models: Mapping[str, LlamaModel], limits: Limits) -> ChatRequest:
    """Return the request in ``body``, parsed JSON. Raises ApiError for the first field that is wrong."""
    if not isinstance(body, dict):
        raise ApiError(400, "serve.request.not_an_object")
    values = {name: read(body[name]) for name, read in _FIELDS.items() if body.get(name) is not None}
    for name, value in body.items():
        if name in _REFUSED and value not in _HARMLESS:
            raise ApiError(400, "serve.request.unsupported", name=name, param=name, code="unsupported_parameter")
        if name not in _FIELDS and name not in _REFUSED and name not in _IGNORED:
            raise ApiError(400, "serve.request.unknown", name=name, param=name, code="unknown_parameter")
    for name in ("model", "messages"):
        if name not in values:
            raise ApiError(400, "serve.request.missing", name=name, param=name, code="missing_required_parameter")
    model = models.get(values["model"])
    if model is None:
        name, known = values["model"][:100], ", ".join(models)
        raise ApiError(
            404, "serve.request.no_such_model", name=name, known=known, param="model", code="model_not_found"
        )
    choices = values.get("n", 1)
    if choices > limits.choices:
        raise ApiError(400, "serve.request.too_large", name="n", most=limits.choices, param="n")
    tools, choice = _tools(values)
    if "top_logprobs" in values and values["top_logprobs"] and not values.get("logprobs"):
        raise ApiError(400, "serve.request.top_logprobs_alone", param="top_logprobs")
    if tools and values.get("response_format") is not None:
        raise ApiError(400, "serve.request.format_and_tools", param="response_format")
    return ChatRequest(
        model,
        Conversation(values["messages"], tools).with_system(model.system),
        _sampling(values, limits),
        values.get("stop", ()),
        choices,
        values.get("stream", False),
        values.get("stream_options", False),
        {name: values[name] for name in ("presence_penalty", "frequency_penalty", "logit_bias") if name in values},
        min_p=values.get("min_p", 0.0),
        tool_choice=choice,
        parallel_calls=values.get("parallel_tool_calls", True),
        logprobs=values.get("top_logprobs", 0) if values.get("logprobs") else None,
        schema=values.get("response_format"),
        template_arguments=values.get("chat_template_kwargs", {}),
    )


def _tools(values: Mapping[str, Any]) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """Return the tools that are framed, and which must be called. Raises ApiError for one that is not there."""
    tools, choice = values.get("tools", ()), values.get("tool_choice", "auto")
    if choice == "none":  # a model that knows of no tools calls none
        return (), choice
    names = {tool["function"]["name"] for tool in tools}
    if (choice == "required" and not tools) or (choice.startswith("=") and choice[1:] not in names):
        raise ApiError(400, "serve.messages.tool_choice", param="tool_choice")
    return tools, choice


def _sampling(values: Mapping[str, Any], limits: Limits) -> Sampling:
    """Return the sampling options; the defaults are those of ``weitune chat``, whose answers are greedy."""
    name = "max_completion_tokens" if "max_completion_tokens" in values else "max_tokens"
    longest = values.get(name, min(Sampling().max_new_tokens, limits.max_tokens))
    if longest > limits.max_tokens:
        raise ApiError(400, "serve.request.too_large", name=name, most=limits.max_tokens, param=name)
    given = {
        key: values[key] for key in ("temperature", "top_p", "top_k", "repetition_penalty", "seed") if key in values
    }
    try:
        return Sampling(max_new_tokens=longest, **given)
    except InputError as error:
        raise ApiError(400, "serve.errors.passed_on", message=error.message) from None


def _number(name: str, least: float, most: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ApiError(400, "serve.request.not_a_number", name=name, least=least, most=most, param=name)
        return float(value)

    return read


def _integer(name: str, least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ApiError(400, "serve.request.not_an_integer", name=name, least=least, most=most, param=name)
        return value

    return read


def _seed(value: Any) -> int:
    """Return a seed in the engine's range; clients may send any 64-bit number."""
    return _integer("seed", -(2**63), 2**63 - 1)(value) % 2**32


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ApiError(400, "serve.request.model_not_a_string", param="model")
    return value


def _boolean(name: str) -> Callable[[Any], bool]:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ApiError(400, "serve.request.not_a_boolean", name=name, param=name)
        return value

    return read


def _usage_wanted(value: Any) -> bool:
    if not isinstance(value, dict):
        raise ApiError(400, "serve.request.stream_options_not_an_object", param="stream_options")
    return value.get("include_usage") is True


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    fits = isinstance(texts, list) and len(texts) <= _STOP_STRINGS
    if not fits or not all(isinstance(text, str) and 0 < len(text) <= _STOP_CHARACTERS for text in texts):
        raise ApiError(400, "serve.request.stop", most=_STOP_STRINGS, most_characters=_STOP_CHARACTERS, param="stop")
    return tuple(texts)


def _biases(value: Any) -> list[list[float]]:
    if not isinstance(value, dict) or len(value) > _BIASES:
        raise ApiError(400, "serve.request.logit_bias_not_an_object", most=_BIASES, param="logit_bias")
    read = _number("logit_bias", -100, 100)
    if not all(token.isdecimal() and len(token) < 8 for token in value):
        raise ApiError(400, "serve.request.logit_bias_tokens", param="logit_bias")
    return [[int(token), read(bias)] for token, bias in value.items()]


def _response_format(value: Any) -> Mapping[str, Any] | None:
    """Return the schema of ``response_format``; None for text."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    given = value.get("json_schema") if kind == "json_schema" else None
    schema = given.get("schema", {}) if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        raise ApiError(400, "serve.request.response_format", param="response_format")
    return schema


def _template_arguments(value: Any) -> dict[str, Any]:
    fits = isinstance(value, dict) and len(value) <= _TEMPLATE_ARGUMENTS
    if not fits or not all(
        isinstance(item, bool | int | float) or (isinstance(item, str) and len(item) <= _STOP_CHARACTERS)
        for item in value.values()
    ):
        raise ApiError(400, "serve.request.template_arguments", param="chat_template_kwargs")
    return dict(value)


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "model": _string,
    "messages": read_messages,
    "tools": read_tools,
    "tool_choice": read_tool_choice,
    "parallel_tool_calls": _boolean("parallel_tool_calls"),
    "response_format": _response_format,
    "chat_template_kwargs": _template_arguments,
    "logprobs": _boolean("logprobs"),
    "top_logprobs": _integer("top_logprobs", 0, 20),
    "stream": _boolean("stream"),
    "stream_options": _usage_wanted,
    "stop": _stop,
    "n": _integer("n", 1),
    "max_tokens": _integer("max_tokens", 1),
    "max_completion_tokens": _integer("max_completion_tokens", 1),
    "temperature": _number("temperature", 0, 2),
    "top_p": _number("top_p", 0, 1),
    "top_k": _integer("top_k", 0),
    "min_p": _number("min_p", 0, 1),
    "repetition_penalty": _number("repetition_penalty", 0.01, 10),
    "seed": _seed,
    "presence_penalty": _number("presence_penalty", -2, 2),
    "frequency_penalty": _number("frequency_penalty", -2, 2),
    "logit_bias": _biases,
}
