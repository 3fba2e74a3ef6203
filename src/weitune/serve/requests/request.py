"""A chat request: from untrusted JSON to values that are in range.

A field is either read, or ignored because it changes no answer, or refused because it would change the answer. Unknown
fields are refused too, so that misspelled ones are noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weitune.data.conversation import Conversation
from weitune.errors import InputError
from weitune.export.llama_models import LlamaModel
from weitune.generate.constrain.response_format import schema_of
from weitune.generate.sampling import Sampling
from weitune.serve.errors import ApiError
from weitune.serve.requests.fields import COMMON, STOP_CHARACTERS, Readers, boolean, integer, read_fields
from weitune.serve.requests.messages import read_messages, read_tool_choice, read_tools

_REFUSED = frozenset({"functions", "function_call", "audio", "modalities", "prediction",
                      "web_search_options"})  # fmt: skip
_TEMPLATE_ARGUMENTS = 32
_UNCHANGED = ("presence_penalty", "frequency_penalty", "logit_bias")


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
    """Options of the engine's own: penalties and logit biases."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are not sampled."""
    tool_choice: str = "auto"
    """``auto``, ``none``, ``required``, or ``=NAME``."""
    parallel_calls: bool = True
    logprobs: int | None = None
    """How many alternatives to each token are told; None: nothing about likelihood is."""
    schema: Mapping[str, Any] | None = None
    """What the answer must fit, as JSON."""
    prompt: str | tuple[int, ...] | None = None
    """A text or its tokens to be continued as they are, in place of the conversation."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template for this request alone."""


def parse_request(body: Any, models: Mapping[str, LlamaModel], limits: Limits) -> ChatRequest:
    """Return the request in ``body``, parsed JSON. Raises ApiError for the first field that is wrong."""
    values = read_fields(body, _FIELDS, _REFUSED, ("model", "messages"))
    model = model_of(values, models)
    tools, choice = _tools(values)
    if "top_logprobs" in values and values["top_logprobs"] and not values.get("logprobs"):
        raise ApiError(400, "serve.request.top_logprobs_alone", param="top_logprobs")
    if tools and values.get("response_format") is not None:
        name = "response_format"
        raise ApiError(400, "serve.request.format_and_tools", name=name, param=name)
    return ChatRequest(
        model,
        Conversation(values["messages"], tools).with_system(model.system),
        **common_options(values, limits),
        tool_choice=choice,
        parallel_calls=values.get("parallel_tool_calls", True),
        logprobs=values.get("top_logprobs", 0) if values.get("logprobs") else None,
        schema=values.get("response_format"),
        template_arguments=_arguments_of(values, model),
    )


def model_of(values: Mapping[str, Any], models: Mapping[str, LlamaModel]) -> LlamaModel:
    """Return the model that a request names. Raises ApiError if there is none of that name."""
    model = models.get(values["model"])
    if model is None:
        name, known = values["model"][:100], ", ".join(models)
        raise ApiError(
            404, "serve.request.no_such_model", name=name, known=known, param="model", code="model_not_found"
        )
    return model


def common_options(values: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Return the options that requests for chats and for texts have in common, as fields of ChatRequest.

    Raises ApiError for one beyond ``limits``.
    """
    choices = values.get("n", 1)
    if choices > limits.choices:
        raise ApiError(400, "serve.request.too_large", name="n", most=limits.choices, param="n")
    return {
        "sampling": _sampling(values, limits),
        "stop": values.get("stop", ()),
        "choices": choices,
        "stream": values.get("stream", False),
        "include_usage": values.get("stream_options", False),
        "extra": {key: values[key] for key in _UNCHANGED if key in values},
        "min_p": values.get("min_p", 0.0),
    }


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


def _response_format(value: Any) -> Mapping[str, Any] | None:
    """Return the schema of ``response_format``; None for text."""
    try:
        return schema_of(value)
    except InputError as error:
        raise ApiError(400, "serve.errors.passed_on", message=error.message, param="response_format") from None


def _arguments_of(values: Mapping[str, Any], model: LlamaModel) -> Mapping[str, Any]:
    """Return the arguments of the template, ``reasoning_effort`` among them. Raises ApiError if it does not read that.

    ``chat_template_kwargs`` has the last word.
    """
    given, effort = values.get("chat_template_kwargs", {}), values.get("reasoning_effort")
    if effort is None:
        return dict(given)
    known = model.framing.argument_names
    if "reasoning_effort" not in known:
        raise ApiError(
            400,
            "serve.framings.unread",
            name="reasoning_effort",
            names=", ".join(sorted(known)) or "-",
            param="reasoning_effort",
            code="unsupported_parameter",
        )
    return {"reasoning_effort": effort, **given}


def _effort(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= STOP_CHARACTERS:
        raise ApiError(400, "serve.request.effort", name="reasoning_effort", param="reasoning_effort")
    return value


def _template_arguments(value: Any) -> dict[str, Any]:
    fits = isinstance(value, dict) and len(value) <= _TEMPLATE_ARGUMENTS
    if not fits or not all(
        isinstance(item, bool | int | float) or (isinstance(item, str) and len(item) <= STOP_CHARACTERS)
        for item in value.values()
    ):
        raise ApiError(400, "serve.request.template_arguments", param="chat_template_kwargs")
    return dict(value)


_FIELDS: Readers = {
    **COMMON,
    "messages": read_messages,
    "tools": read_tools,
    "tool_choice": read_tool_choice,
    "parallel_tool_calls": boolean("parallel_tool_calls"),
    "response_format": _response_format,
    "chat_template_kwargs": _template_arguments,
    "reasoning_effort": _effort,
    "logprobs": boolean("logprobs"),
    "top_logprobs": integer("top_logprobs", 0, 20),
}
