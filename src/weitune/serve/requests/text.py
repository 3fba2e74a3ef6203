"""A request to continue a text as it is, without a chat template (``/v1/completions``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.data.conversation import Conversation
from weitune.export.llama_models import LlamaModel
from weitune.serve.errors import ApiError
from weitune.serve.requests.fields import COMMON, Readers, boolean, integer, read_fields
from weitune.serve.requests.messages import whole_characters
from weitune.serve.requests.request import ChatRequest, Limits, common_options, model_of

_REFUSED = frozenset({"suffix", "best_of"})
_PROMPTS = 16
"""The most prompts of one request."""


def parse_text_request(
    body: Any, models: Mapping[str, LlamaModel], limits: Limits
) -> tuple[list[ChatRequest], tuple[str, ...]]:
    """Return a request for each prompt in ``body``, parsed JSON, and what stands before each choice of the reply.

    Choices are those of the first prompt, then those of the next; without ``echo`` nothing stands before them. Raises
    ApiError for the first field that is wrong.
    """
    if isinstance(body, dict) and body.get("best_of") == 1:
        body = {key: value for key, value in body.items() if key != "best_of"}
    values = read_fields(body, _FIELDS, _REFUSED, ("model", "prompt"))
    model = model_of(values, models)
    options = common_options(values, limits)
    logprobs, echo = values.get("logprobs"), values.get("echo", False)
    if echo and logprobs is not None:
        raise ApiError(400, "serve.text.echo_logprobs", param="echo")
    requests = [
        ChatRequest(model, Conversation(()), **options, logprobs=logprobs, prompt=prompt) for prompt in values["prompt"]
    ]
    echoed = [_shown(each) if echo else "" for each in requests for _ in range(each.choices)]
    return requests, tuple(echoed)


def _shown(request: ChatRequest) -> str:
    """Return the text of a prompt."""
    given = request.prompt or ""
    return given if isinstance(given, str) else request.model.framing.decode(given)


def _prompts(value: Any) -> list[str | tuple[int, ...]]:
    """Return the text, or the tokens, of each prompt."""
    several = isinstance(value, list) and bool(value) and all(isinstance(each, str | list) for each in value)
    if several and len(value) > _PROMPTS:
        raise ApiError(400, "serve.request.too_large", name="prompt", most=_PROMPTS, param="prompt")
    return [_prompt(each) for each in value] if several else [_prompt(value)]


def _prompt(value: Any) -> str | tuple[int, ...]:
    """Return the text, or the tokens, of one prompt."""
    if isinstance(value, str):
        return whole_characters(value)
    fits = isinstance(value, list) and all(type(token) is int and 0 <= token < 2**31 for token in value)
    if not fits:
        raise ApiError(400, "serve.text.prompt", param="prompt")
    return tuple(value)


_FIELDS: Readers = {**COMMON, "prompt": _prompts, "logprobs": integer("logprobs", 0, 5), "echo": boolean("echo")}
