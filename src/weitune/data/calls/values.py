"""Values in a model's text: JSON, and the notation of templates that put strings between control tokens."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_DEEPEST = 64
"""Nested lists and objects; a deeper value is none."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_KEY = re.compile(r"\s*([^\s:{}\[\],][^:{}\[\],]*):\s*")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)


def json_value(text: str, at: int) -> tuple[Any, int] | None:
    """Return the JSON value at ``at`` and the place after it; None if there is none."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class QuotedValues:
    """Objects such as ``{port:ⓠBrestⓠ,days:[1,2]}``, where ``quote`` (ⓠ) is around strings and perhaps around keys."""

    quote: str

    def read(self, text: str, at: int) -> tuple[Any, int] | None:
        """Return the value at ``at`` and the place after it; None if there is none."""
        try:
            return self._value(text, at, _DEEPEST)
        except (ValueError, IndexError):
            return None

    def _value(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        if not depth:
            raise ValueError("nested too deeply")
        if text.startswith(self.quote, at):
            start = at + len(self.quote)
            end = text.index(self.quote, start)
            return text[start:end], end + len(self.quote)
        if text[at] == "{":
            return self._object(text, at + 1, depth)
        if text[at] == "[":
            return self._list(text, at + 1, depth)
        if number := _NUMBER.match(text, at):
            return json.loads(number[0]), number.end()
        word = next((word for word in _WORDS if text.startswith(word, at)), None)
        if word is None:
            raise ValueError("no value")
        return _WORDS[word], at + len(word)

    def _object(self, text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while text[at := _blank(text, at)] != "}":
            if text.startswith(self.quote, at):
                key, at = self._value(text, at, depth)
                if text[at] != ":":
                    raise ValueError("a key without a value")
                at = _blank(text, at + 1)
            elif named := _KEY.match(text, at):
                key, at = named[1], named.end()
            else:
                raise ValueError("no key")
            found[key], at = self._value(text, at, depth - 1)
            at = _separated(text, at, "}")
        return found, at + 1

    def _list(self, text: str, at: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while text[at := _blank(text, at)] != "]":
            item, at = self._value(text, at, depth - 1)
            found.append(item)
            at = _separated(text, at, "]")
        return found, at + 1


def _blank(text: str, at: int) -> int:
    while text[at].isspace():
        at += 1
    return at


def _separated(text: str, at: int, closing: str) -> int:
    """Return the place after a comma, or that of ``closing``."""
    at = _blank(text, at)
    if text[at] == ",":
        return at + 1
    if text[at] != closing:
        raise ValueError("neither a comma nor an end")
    return at
