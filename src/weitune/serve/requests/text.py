"""A request to continue a text as it is, without a chat template (``/v1/completions``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.data.conversation import Conversation
from weitune.export.llama_models import LlamaModel
from weitune.serve.errors import ApiError
from weitune.serve.requests.fields import COMMON, Readers, integer, read_fields
from weitune.serve.requests.messages import whole_characters
from weitune.serve.requests.request import ChatRequest, Limits, common_options, model_of

_REFUSED = frozenset({"suffix", "echo", "best_of"})


def parse_text_request(body: Any, models: Mapping[str, LlamaModel], limits: Limits) -> ChatRequest:
    """Return the request in ``body``, parsed JSON. Raises ApiError for the first field that is wrong."""
    if isinstance(body, dict) and body.get("best_of") == 1:
        body = {key: value for key, value in body.items() if key != "best_of"}
    values = read_fields(body, _FIELDS, _REFUSED, ("model", "prompt"))
    model = model_of(values, models)
    options = common_options(values, limits)
    return ChatRequest(model, Conversation(()), **options, logprobs=values.get("logprobs"), prompt=values["prompt"])


def _prompt(value: Any) -> str | tuple[int, ...]:
    """Return the text, or the tokens, of one prompt, which may be in a list of its own."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        [value] = value
    if isinstance(value, str):
        return whole_characters(value)
    fits = isinstance(value, list) and all(type(token) is int and 0 <= token < 2**31 for token in value)
    if not fits:
        raise ApiError(400, "serve.text.prompt", param="prompt")
    return tuple(value)


_FIELDS: Readers = {**COMMON, "prompt": _prompt, "logprobs": integer("logprobs", 0, 5)}
