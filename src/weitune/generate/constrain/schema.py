"""JSON schemas as grammars of llguidance, checked before anything is generated.

A schema is refused with the reason if it asks for something that the grammar cannot hold (``not``, ``uniqueItems``),
or if nothing fits it. So an answer that ends by itself fits its schema. Answers are written as ``json.dumps`` writes
them, in one line: white space without end would be valid JSON too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from weitune.errors import InputError, MissingExtraError

_MOST_BYTES = 32 << 10
"""Of the schemas of one grammar; compiling one takes time in proportion to its square (0.1 s for this size)."""
_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of any object."""


def require_llguidance() -> None:
    """Raise MissingExtraError unless ``llguidance`` is installed."""
    import importlib.util

    if importlib.util.find_spec("llguidance") is None:
        raise MissingExtraError("llguidance", "json")


def check_sizes(schemas: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError if ``schemas``, which one grammar is to hold, are too large together; takes no time."""
    if sum(len(_written(schema)) for schema in schemas) > _MOST_BYTES:
        raise InputError("generate.schema.too_large", most_bytes=_MOST_BYTES)


def _written(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps({**schema, "x-guidance": _STYLE}, ensure_ascii=True)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError("generate.schema.refused", reason=error) from None


class JsonRule:
    """A valid schema that something fits."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises MissingExtraError without ``llguidance``, InputError with the reason if ``schema`` is refused."""
        require_llguidance()
        from llguidance import LLMatcher, LLTokenizer

        check_sizes([schema])
        self.text = _written(schema)
        self._bytes = LLTokenizer("byte")
        self._matcher = LLMatcher(self._bytes, self.lark, log_level=0)
        self._matcher.deep_copy().compute_bitmask()  # some grammars without an end show only here
        reason = self._matcher.get_error() or self._first_step_error()
        if "coerce_one_of" in reason:
            raise InputError("generate.schema.one_of")
        if reason:
            raise InputError("generate.schema.refused", reason=reason.strip().splitlines()[0][:300])

    @property
    def lark(self) -> str:
        """The grammar."""
        return f"%llguidance {{}}\nstart: {self.expression}\n"

    @property
    def expression(self) -> str:
        """What stands for the schema in a larger grammar."""
        return f"%json {self.text}"

    def fits(self, text: str) -> bool:
        """Return whether ``text`` is a whole value that fits the schema."""
        matcher = self._matcher.deep_copy()
        tokens = self._bytes.tokenize_str(text)
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())

    def _first_step_error(self) -> str:
        matcher = self._matcher.deep_copy()
        matcher.compute_bitmask()
        return str(matcher.get_error())
