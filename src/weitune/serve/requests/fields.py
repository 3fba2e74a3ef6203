"""The fields that requests have in common: each is read, ignored because it changes no answer, or refused.

Unknown fields are refused too, so that misspelled ones are noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weitune.serve.errors import ApiError

Readers = Mapping[str, Callable[[Any], Any]]
"""For each field what makes a value of its JSON, or raises ApiError."""
_IGNORED = frozenset({"user", "store", "metadata", "service_tier", "safety_identifier",
                      "prompt_cache_key", "prompt_cache_retention", "verbosity"})  # fmt: skip
_HARMLESS: tuple[Any, ...] = (None, False, 0, [], {}, "none", "auto", {"type": "text"}, ["text"])
"""Values of a refused field that have no effect."""
_STOP_STRINGS = 16
STOP_CHARACTERS = 256
_BIASES = 1024


def read_fields(body: Any, fields: Readers, refused: frozenset[str], required: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of the fields of ``body``, parsed JSON, that are given.

    Raises ApiError for the first that is wrong, among ``refused`` with a value that has an effect, or unknown, and for
    a missing one of those ``required``.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "serve.request.not_an_object")
    values = {name: read(body[name]) for name, read in fields.items() if body.get(name) is not None}
    for name, value in body.items():
        if name in refused and value not in _HARMLESS:
            raise ApiError(400, "serve.request.unsupported", name=name, param=name, code="unsupported_parameter")
        if name not in fields and name not in refused and name not in _IGNORED:
            raise ApiError(400, "serve.request.unknown", name=name, param=name, code="unknown_parameter")
    for name in required:
        if name not in values:
            raise ApiError(400, "serve.request.missing", name=name, param=name, code="missing_required_parameter")
    return values


def number(name: str, least: float, most: float) -> Callable[[Any], float]:
    """Return a reader of numbers in a range; it raises ApiError for anything else, as all readers do."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ApiError(400, "serve.request.not_a_number", name=name, least=least, most=most, param=name)
        return float(value)

    return read


def integer(name: str, least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    """Return a reader of integers in a range."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ApiError(400, "serve.request.not_an_integer", name=name, least=least, most=most, param=name)
        return value

    return read


def _seed(value: Any) -> int:
    """Return a seed in the engine's range; clients may send any 64-bit number."""
    return integer("seed", -(2**63), 2**63 - 1)(value) % 2**32


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ApiError(400, "serve.request.model_not_a_string", param="model")
    return value


def boolean(name: str) -> Callable[[Any], bool]:
    """Return a reader of truth values."""

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
    if not fits or not all(isinstance(text, str) and 0 < len(text) <= STOP_CHARACTERS for text in texts):
        raise ApiError(400, "serve.request.stop", most=_STOP_STRINGS, most_characters=STOP_CHARACTERS, param="stop")
    return tuple(texts)


def _biases(value: Any) -> list[list[float]]:
    if not isinstance(value, dict) or len(value) > _BIASES:
        raise ApiError(400, "serve.request.logit_bias_not_an_object", most=_BIASES, param="logit_bias")
    read = number("logit_bias", -100, 100)
    if not all(token.isdecimal() and len(token) < 8 for token in value):
        raise ApiError(400, "serve.request.logit_bias_tokens", param="logit_bias")
    return [[int(token), read(bias)] for token, bias in value.items()]


COMMON: Readers = {
    "model": _string,
    "stream": boolean("stream"),
    "stream_options": _usage_wanted,
    "stop": _stop,
    "n": integer("n", 1),
    "max_tokens": integer("max_tokens", 1),
    "max_completion_tokens": integer("max_completion_tokens", 1),
    "temperature": number("temperature", 0, 2),
    "top_p": number("top_p", 0, 1),
    "top_k": integer("top_k", 0),
    "min_p": number("min_p", 0, 1),
    "repetition_penalty": number("repetition_penalty", 0.01, 10),
    "seed": _seed,
    "presence_penalty": number("presence_penalty", -2, 2),
    "frequency_penalty": number("frequency_penalty", -2, 2),
    "logit_bias": _biases,
}
