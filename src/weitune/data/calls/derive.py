"""Find the form of a template's answers by what it writes for a few of them.

Two calls with known names and arguments are written; what stands around these is what frames any call. How a template
writes reasoning and content is found in the same way. Then further calls, with arguments of every kind, are written and
read back: if one comes back as anything else, the form counts as unreadable, with that as the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from weitune.data.calls.form import (
    AnswerForm,
    CallForm,
    Envelope,
    JsonCalls,
    NamedCalls,
    PairCalls,
    Tools,
    as_json,
    pattern_of,
)
from weitune.data.calls.marks import Marks
from weitune.data.calls.reader import read_answer
from weitune.data.calls.values import QuotedValues, json_value
from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.frame.framing import Framing
from weitune.data.frame.template import REFUSALS
from weitune.errors import DataError
from weitune.messages import say

_ASKED = Turn("user", "When is high tide?")
_ANSWER, _THOUGHT = "At noon, captain.", "The moon was full yesterday"
_FIRST = ToolCall("probe_alpha", {"first": "aa1", "second": "bb2"}, "probeid01")
_SECOND = ToolCall("probe_beta", {"first": "cc3", "second": "dd4"}, "probeid02")
_ODD = 'a "quote", it\'s a \\, {a: [brace]}\nand 涨潮 🌊'


class Written(NamedTuple):
    """What a template writes for a probe."""

    one: str
    two: str
    empty: str
    empty_two: str


class Probe:
    """Writes answers with one framing."""

    def __init__(self, framing: Framing) -> None:
        self.marks = Marks(framing.control_tokens, framing.special_ids)
        self._framing = framing
        self._stops = tuple(filter(None, (self.marks.of_pieces([(token,)]) for token in framing.stop_tokens)))
        self.reasoning: str | None = None
        """What answers think that are not given anything else; needed where the prompt opens their reasoning."""

    def write(
        self, content: str, calls: Sequence[ToolCall] = (), reasoning: str | None = None, tools: Tools = ()
    ) -> str:
        """Return what the template writes after the prompt, without the end of the turn, marked.

        Raises DataError if it refuses, or leaves something out.
        """
        thought = self.reasoning if reasoning is None else reasoning
        answer = Turn("assistant", content, reasoning=thought, tool_calls=tuple(calls))
        draft = self._framing.draft(Conversation((_ASKED, answer), tuple(tools) or tools_for(calls)))[-1]
        pieces = draft.pieces[draft.learned[0].start : draft.learned[-1].stop]
        text = self.marks.of_pieces(pieces)
        while text.endswith(self._stops):
            text = text.removesuffix(next(stop for stop in self._stops if text.endswith(stop)))
        return text

    def try_write(self, content: str, calls: Sequence[ToolCall] = (), reasoning: str | None = None) -> str:
        """Return what :meth:`write` does; "" if the template refuses."""
        try:
            return self.write(content, calls, reasoning)
        except (DataError, *REFUSALS):
            return ""

    def plain_opening(self, calls: Sequence[ToolCall] = (), begin: str = _ANSWER) -> str:
        """Return what stands between a prompt and ``begin`` in an answer without reasoning, marked: the beginning of
        its content, or of ``calls``."""
        answer, tools = Turn("assistant", "" if calls else _ANSWER, tool_calls=tuple(calls)), tools_for(calls)
        try:
            prompt = self._framing.prompt(Conversation((_ASKED,), tools))
            answered = self._framing.examples(Conversation((_ASKED, answer), tools))[-1].input_ids
        except (DataError, *REFUSALS):
            return ""
        before, found, _ = self.marks.of_tokens(answered[len(prompt) :], self._framing.decode).partition(begin)
        return before if found and before.strip() and list(answered[: len(prompt)]) == list(prompt) else ""


def answer_form(framing: Framing) -> tuple[AnswerForm, Marks]:
    """Return the form of the answers that ``framing`` teaches, and the marks of its control tokens."""
    probe = Probe(framing)
    frame = _frame(probe)
    probe.reasoning = _THOUGHT if frame.begins_in_reasoning else None
    try:
        probe.write(_ANSWER, tools=tools_for((_FIRST,)))  # it must tell the model of the tools, too
        one = _body(probe, frame, (_FIRST,))
    except DataError as error:
        return replace(frame, no_calls=say("data.calls.not_written", reason=error.message)), probe.marks
    written = Written(one, _try_body(probe, frame, (_FIRST, _SECOND)), *_empties(probe, frame))
    calls = _json_calls(written) or _named_calls(written) or _pair_calls(written)
    if calls is None:
        return replace(frame, no_calls=say("data.calls.unknown_form", written=probe.marks.written(one))), probe.marks
    form = replace(frame, calls=calls, gap=_gap(probe, frame, calls), several=bool(written.two))
    form = replace(form, call_opening=probe.plain_opening((_FIRST,), calls.opening or "{"))
    fault = _fault(probe, form)
    return (replace(frame, no_calls=fault) if fault else form), probe.marks


def tools_for(calls: Sequence[ToolCall]) -> tuple[Mapping[str, Any], ...]:
    """Return tools that take the arguments of ``calls``."""
    return tuple(
        {
            "type": "function",
            "function": {
                "name": name,
                "description": "A probe.",
                "parameters": {
                    "type": "object",
                    "properties": {key: {"type": _type(value)} for key, value in arguments.items()},
                },
            },
        }
        for name, arguments in {call.name: call.arguments for call in calls}.items()
    )


def _type(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _frame(probe: Probe) -> AnswerForm:
    """Return what is around reasoning and content."""
    before, answered, _ = probe.try_write(_ANSWER).partition(_ANSWER)
    think, thought, rest = probe.try_write(_ANSWER, reasoning=_THOUGHT).partition(_THOUGHT)
    between = rest.partition(_ANSWER)[0].strip()
    think, content = think.strip(), before.strip() if answered else ""
    if not thought or not between:
        return AnswerForm(contents=(content,) if content else (), plain_opening=probe.plain_opening())
    if "".join(content.split()) in {"".join(between.split()), "".join((think + between).split())}:
        content = ""  # an empty reasoning block
    closing = between.removesuffix(content).strip()
    return AnswerForm(think, closing, (content,) if content else (), probe.plain_opening())


def _body(probe: Probe, frame: AnswerForm, calls: Sequence[ToolCall]) -> str:
    """Return what is written for ``calls``, without the reasoning before it. Raises DataError."""
    text = probe.write("", calls)
    for block in (f"{probe.reasoning or frame.think} {frame.thought}", frame.thought):
        if block and (match := re.compile(pattern_of(block)).match(text)):
            return text[match.end() :]
    return text


def _try_body(probe: Probe, frame: AnswerForm, calls: Sequence[ToolCall]) -> str:
    try:
        return _body(probe, frame, calls)
    except (DataError, *REFUSALS):
        return ""


def _empties(probe: Probe, frame: AnswerForm) -> tuple[str, str]:
    empty = _FIRST._replace(arguments={})
    return _try_body(probe, frame, (empty,)), _try_body(probe, frame, (empty, _SECOND))


def _json_calls(written: Written) -> JsonCalls | None:
    for start in (match.start() for match in re.finditer(r"[\[{]", written.one)):
        value, stop = json_value(written.one, start) or (None, 0)
        listed = isinstance(value, list)
        item = value[0] if isinstance(value, list) and len(value) == 1 else value
        envelope = _envelope(item)
        if envelope is None:
            continue
        opening, closing = written.one[:start].strip(), written.one[stop:].strip()
        if listed:
            return JsonCalls(opening, None, closing, envelope)
        second = written.two.find("{", stop)
        between = written.two[stop:second].strip() if second >= 0 else f"{closing}{opening}"
        return JsonCalls(opening, between, closing, envelope)
    return None


def _envelope(value: Any) -> Envelope | None:
    """Return under which keys ``value`` has the parts of the first probe; None if it has them nowhere."""
    if not isinstance(value, dict):
        return None
    keys = {repr(item): key for key, item in value.items()}
    name, id_ = keys.get(repr(_FIRST.name)), keys.get(repr(_FIRST.id))
    as_object, as_text = keys.get(repr(_FIRST.arguments)), keys.get(repr(as_json(_FIRST.arguments)))
    arguments = as_object or as_text
    if name is None or arguments is None or len(value) > 2 + (id_ is not None):
        return None
    return Envelope(name, arguments, id_, as_object is None)


def _named_calls(written: Written) -> NamedCalls | None:
    """Return the form of a name and an object after it, in JSON or with strings in quotes of the template's own."""
    opening, named, after = written.one.partition(_FIRST.name)
    start = after.find("{")
    if not named or start < 0:
        return None
    quote = None
    found = json_value(after, start)
    if found is None or found[0] != _FIRST.arguments:
        quote = after[: after.find("aa1")].rpartition("first")[2].strip().removeprefix(":").strip()
        found = QuotedValues(quote).read(after, start) if quote else None
    if found is None or found[0] != _FIRST.arguments:
        return None
    closing = after[found[1] :]
    at = len(opening) + len(named) + found[1]
    between = written.two[at : written.two.find(_SECOND.name)] if _SECOND.name in written.two else closing + opening
    return NamedCalls(opening.strip(), _middle(after[:start]), between.strip(), closing.strip(), quote)


def _middle(text: str) -> str:
    """Return a pattern for what is between name and arguments: a call's id and its number may differ."""
    before, has_id, after = text.partition(str(_FIRST.id))
    if has_id:
        return pattern_of(before) + r"(?P<id>[\w.\-]+?)" + pattern_of(after)
    number = re.fullmatch(r":(\d+)(.*)", text, re.DOTALL)  # `functions.NAME:NUMBER` (Kimi K2)
    return r":\d+" + pattern_of(number[2]) if number else pattern_of(text)


def _pair_calls(written: Written) -> PairCalls | None:
    one = _cut(written.one, _FIRST.name, "first", "aa1", "second", "bb2")
    empty = _cut(written.empty, _FIRST.name)
    if one is None or empty is None or one[2] != one[4]:
        return None
    opening, first, middle, again, _, closing = one
    two = _cut(written.two, _FIRST.name, "first", "aa1", "second", "bb2", _SECOND.name)
    empty_two = _cut(written.empty_two, _FIRST.name, _SECOND.name)
    next_, next_empty = (two[5] if two else "", empty_two[1] if empty_two else "")
    if not middle or not again or not first:
        return None
    return PairCalls(opening.strip(), first, middle, again, next_, closing, next_empty, empty[1])


def _cut(text: str, *parts: str) -> list[str] | None:
    """Return the texts around ``parts``, which come in this order; None if one is missing."""
    texts = []
    for part in parts:
        before, found, text = text.partition(part)
        if not found:
            return None
        texts.append(before)
    return [*texts, text]


def _gap(probe: Probe, frame: AnswerForm, calls: CallForm) -> str:
    """Return what is between content and the opening of calls, apart from white space."""
    rest = probe.try_write(_ANSWER, (_FIRST,)).rpartition(_ANSWER)[2]
    at = rest.find(calls.opening) if calls.opening else -1
    return rest[:at].strip() if at > 0 else ""


def _fault(probe: Probe, form: AnswerForm) -> str:
    """Return how a call comes back changed; "" if all come back as they were."""
    lookalikes = " ".join(list(probe.marks.texts.values())[-8:])
    every: list[dict[str, Any]] = [
        {},
        {"text": "plain"},
        {"text": _ODD, "other": ""},
        {"text": f"{lookalikes} as text"},
        {"count": -3, "share": 0.25, "sure": True, "unsure": False, "nothing": None},
        {"list": [1, "two", [], {"three": [None, "3"]}], "object": {"a": {"b": "c"}, "d": {}}},
    ]
    singles = [(ToolCall("probe_gamma", arguments, "probeid03"),) for arguments in every]
    pairs = [(call, _SECOND) for (call,) in singles] if form.several else []
    for calls in [*singles, *pairs]:
        try:
            text = probe.write("", calls)
        except DataError as error:
            return say("data.calls.not_written", reason=error.message)
        answer = read_answer(text, form, probe.marks, tools_for(calls))
        if [call[:2] for call in answer.calls] != [call[:2] for call in calls] or answer.content:
            written, read = probe.marks.written(text), as_json([list(call[:2]) for call in answer.calls])
            return say("data.calls.comes_back_changed", written=written, read=read)
    return ""
