"""How a template writes an answer: its frame, and the form of its calls.

    JSON, one after another    ⓐ\\n{"name": "tides", "arguments": {…}}\\nⓑ
    JSON, in a list            ⓐ [{"name": "tides", "arguments": {…}, "id": "…"}]
    a name, then JSON          ⓐtidesⓑ{"port": "Brest"}
    a name, then values        ⓐcall:tides{port:ⓠBrestⓠ}
    a name, then pairs         ⓐ\\n<function=tides>\\n<parameter=port>\\nBrest\\n</parameter>\\n</function>\\nⓑ

All text is marked (:mod:`.marks`). White space around what frames a call may differ from the template's; everything
else must be as the template writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from weitune.data.calls.values import QuotedValues, json_value
from weitune.data.conversation import ToolCall

Tools = Sequence[Mapping[str, Any]]
ReadObject = Callable[[str, int], "tuple[Mapping[str, Any], int] | None"]
"""Reads an object at a place in a text, and returns it and the place after it; None if there is none."""
_NAME = r"([\w.\-]+?)"


class CallForm(Protocol):
    """The form of the calls of one template."""

    @property
    def opening(self) -> str:
        """What the first call begins with; empty where only the text's beginning tells that it is a call."""

    @property
    def literals(self) -> str:
        """Everything that frames calls, in one string."""

    def read(self, text: str, tools: Tools) -> tuple[ToolCall, ...] | None:
        """Return the calls that ``text`` consists of, from :attr:`opening` to its end; None if it is anything else."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A call as an object in JSON: under which keys its parts are."""

    name: str
    arguments: str
    id: str | None = None
    arguments_are_text: bool = False

    def call(self, value: Any) -> ToolCall | None:
        """Return the call that ``value`` is; None if it is none."""
        if not isinstance(value, dict) or not {self.name, self.arguments} <= set(value) <= {*self.keys}:
            return None
        name, arguments, id_ = value[self.name], value[self.arguments], value.get(self.id or "")
        if self.arguments_are_text and isinstance(arguments, str):
            arguments = _whole_json(arguments)
        fits = isinstance(name, str) and name and isinstance(arguments, dict) and isinstance(id_, str | None)
        return ToolCall(name, arguments, id_) if fits else None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in (self.name, self.arguments, self.id) if key is not None)


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Calls that are objects in JSON; ``between`` is None if they are in one list."""

    opening: str
    between: str | None
    closing: str
    envelope: Envelope

    @property
    def literals(self) -> str:
        return f"{self.opening}{self.between or ''}{self.closing}"

    def read(self, text: str, tools: Tools) -> tuple[ToolCall, ...] | None:
        at = _after(self.opening, text, 0)
        calls: list[ToolCall | None] = []
        while at is not None and (found := json_value(text, at)) is not None:
            value, at = found
            if self.between is None:
                calls = [self.envelope.call(item) for item in value] if isinstance(value, list) else [None]
            else:
                calls.append(self.envelope.call(value))
            end = _after(self.closing, text, at)
            if end == len(text):
                return _all(calls)
            at = None if self.between is None else _after(self.between, text, at)
        return None


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """Calls that are a name and then their arguments as an object, which ``values`` reads.

    ``middle`` is between them, as a pattern that may have an ``id``.
    """

    opening: str
    middle: str
    between: str
    closing: str
    quote: str | None = None
    """What is around strings; None if the object is JSON."""

    @property
    def literals(self) -> str:
        return f"{self.opening}{self.middle}{self.between}{self.closing}{self.quote or ''}"

    def read(self, text: str, tools: Tools) -> tuple[ToolCall, ...] | None:
        values: ReadObject = json_value if self.quote is None else QuotedValues(self.quote).read
        head = re.compile(_NAME + self.middle + r"(?=\{)")
        at = _after(self.opening, text, 0)
        calls: list[ToolCall | None] = []
        while at is not None and (named := head.match(text, at)) is not None:
            found = values(text, named.end())
            if found is None or not isinstance(found[0], dict):
                return None
            calls.append(ToolCall(named[1], found[0], named.groupdict().get("id")))
            if _after(self.closing, text, found[1]) == len(text):
                return _all(calls)
            at = _after(self.between, text, found[1])
        return None


@dataclass(frozen=True, slots=True)
class PairCalls:
    """Calls that are a name and then pairs of a key and a value, strings without quotes.

    A value is a string where the tool's schema says so, or where it is no JSON. ``next`` and ``closing`` follow the
    last value, ``next_empty`` and ``closing_empty`` the name of a call without arguments.
    """

    opening: str
    first: str
    middle: str
    again: str
    next: str
    closing: str
    next_empty: str
    closing_empty: str

    @property
    def literals(self) -> str:
        return "".join((self.opening, self.first, self.middle, self.again, self.next, self.closing, self.closing_empty))

    def read(self, text: str, tools: Tools) -> tuple[ToolCall, ...] | None:
        text = text.rstrip() + self.closing[len(self.closing.rstrip()) :]
        at = _after(self.opening, text, 0)
        calls: list[ToolCall | None] = []
        while at is not None and (named := re.compile(_NAME + r"(?![\w.\-])").match(text, at)) is not None:
            types = _types(named[1], tools)
            arguments: dict[str, Any] = {}
            at, end = named.end(), (self.closing_empty, self.next_empty)
            mark = self.first
            while text.startswith(mark, at):
                key, found, rest = text[at + len(mark) :].partition(self.middle)
                value, stop = self._value(rest)
                if not found or stop < 0 or key in arguments:
                    return None
                arguments[key] = _typed(value, types.get(key))
                at, end = len(text) - len(rest) + stop, (self.closing, self.next)
                mark = self.again
            calls.append(ToolCall(named[1], arguments))
            if text[at:] == end[0]:
                return _all(calls)
            at = at + len(end[1]) if end[1] and text.startswith(end[1], at) else None
        return None

    def _value(self, rest: str) -> tuple[str, int]:
        """Return the value at the beginning of ``rest`` and its length; -1 if it has no end."""
        stops = [at for mark in (self.again, self.next) if mark and (at := rest.find(mark)) >= 0]
        if not stops and rest.endswith(self.closing):
            stops = [len(rest) - len(self.closing)]
        stop = min(stops, default=-1)
        return rest[: max(stop, 0)], stop


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a template frames answers. Everything is marked text without white space at its ends."""

    think: str = ""
    """What opens reasoning; empty if the prompt has done so."""
    thought: str = ""
    """What closes it; empty if answers have no reasoning."""
    contents: tuple[str, ...] = ()
    """What may open the content of an answer."""
    plain_opening: str = ""
    """What is written before the content of an answer without reasoning, an empty block of it included. This one may
    end with white space."""
    call_opening: str = ""
    """What is written before the calls of an answer without reasoning and content, as :attr:`plain_opening`."""
    gap: str = ""
    """What is between content and calls."""
    calls: CallForm | None = None
    no_calls: str = ""
    """Why there are no calls, in words."""
    several: bool = False
    """Whether one answer may have several calls."""

    @property
    def begins_in_reasoning(self) -> bool:
        """Whether the prompt opens the reasoning, so that an answer begins within it."""
        return bool(self.thought) and not self.think

    @property
    def literals(self) -> str:
        calls = self.calls.literals if self.calls is not None else ""
        return "".join((self.think, self.thought, *self.contents, self.gap, calls))


def pattern_of(literal: str) -> str:
    """Return a pattern for ``literal`` that takes any white space where it has some."""
    return r"\s*" + r"\s*".join(map(re.escape, literal.split())) + r"\s*"


def _after(literal: str, text: str, at: int) -> int | None:
    match = re.compile(pattern_of(literal)).match(text, at)
    return None if match is None else match.end()


def _all(calls: Sequence[ToolCall | None]) -> tuple[ToolCall, ...] | None:
    whole = tuple(call for call in calls if call is not None)
    return whole if whole and len(whole) == len(calls) else None


def _whole_json(text: str) -> Any:
    found = json_value(text, 0)
    return None if found is None or text[found[1] :].strip() else found[0]


def _types(name: str, tools: Tools) -> Mapping[str, Any]:
    """Return the type of every argument of a tool, as its schema says."""
    for tool in tools:
        function = tool.get("function", tool)
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        if isinstance(parameters, Mapping) and function.get("name") == name:
            properties = parameters.get("properties")
            if isinstance(properties, Mapping):
                return {key: item.get("type") for key, item in properties.items() if isinstance(item, Mapping)}
    return {}


def _typed(text: str, kind: Any) -> Any:
    if kind == "string":
        return text
    found = json_value(text, 0)
    return text if found is None or text[found[1] :].strip() else found[0]


def as_json(value: Any) -> str:
    """Return ``value`` as the templates' ``tojson`` writes it."""
    return json.dumps(value, ensure_ascii=False)
