"""Small dialogues to find out in which form a template reads calls and reasoning.

A rendering without an exception may still be wrong, with a Python dictionary in place of JSON, for instance. So each
probe looks for its own text: the call with its arguments, the reasoning before the answer, once and in tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

from weitune.data.conversation import ToolCall
from weitune.data.frame.control_tokens import ControlTokens
from weitune.data.frame.template import REFUSALS, ChatTemplate

QUESTION, ANSWER, REASONING = "When is high tide?", "At noon, captain.", "The moon was full yesterday"
CALL = ToolCall("tide_times", {"port": "Brest"})
_TOOL = {
    "type": "function",
    "function": {"name": CALL.name, "description": "Tells the tides.",
                 "parameters": {"type": "object", "properties": {"port": {"type": "string"}}}},
}  # fmt: skip
TAGS = (("<think>\n", "\n</think>\n\n"), ("[THINK]", "[/THINK]"))
"""What opens and closes reasoning where the template does not tell: those whose tokens there are, or the first."""
_FIELDS = (("reasoning_content", "thinking"), ("reasoning_content", "thinking", "reasoning"))
"""Names of the field for reasoning; transformers itself sets the first two together."""


class CallFormat(NamedTuple):
    """The form of a message with calls."""

    json_arguments: bool
    """Whether arguments are a JSON string."""
    empty: str | None
    """The content of a message that only calls."""
    names_in_ids: bool = False
    """Whether the name of a function is written only in the call's id, `functions.NAME:NUMBER` (Kimi K2)."""

    def id_of(self, call: ToolCall, turn: int, place: int, number: int) -> str:
        """Return the id of a call, its own if possible.

        It is the ``place``-th call of ``turn`` and the ``number``-th of all, from 0. Mistral's templates require nine
        letters or digits.
        """
        if self.names_in_ids:
            return call.id if call.id and call.name in call.id else f"functions.{call.name}:{number}"
        return call.id or f"call{turn:03}{place:02}"


class ReasoningFormat(NamedTuple):
    """The form of a message's reasoning. ``before``: it has none, so the reasoning is put before the answer."""

    place: Literal["field", "parts", "content", "before"]
    open: str
    close: str
    fields: tuple[str, ...] = ()


def tags_of(controls: ControlTokens) -> tuple[str, str]:
    """Return what opens and closes reasoning for a tokenizer."""
    return next((tags for tags in TAGS if all(tag.strip() in controls.ids for tag in tags)), TAGS[0])


class TemplateProbe:
    """Tries one template, each thing once."""

    def __init__(self, template: ChatTemplate, controls: ControlTokens) -> None:
        self._template = template
        self._controls = controls
        self.tags = tags_of(controls)
        self.reasoning_format = cache(self._find_reasoning_format)
        """The form of reasoning in turns with or without a call."""
        self.tags_keep_blanks = cache(self._find_kept_blanks)
        """Whether content keeps its leading blanks only if its reasoning is in `<think>` tags before it, not in a
        field, in turns with or without a call."""

    @cached_property
    def call_format(self) -> CallFormat:
        """The form of calls; arguments are objects if the template knows no calls."""
        choices = product((False, True), ("", None), (False, True))
        formats = [CallFormat(json_arguments, empty, named) for named, empty, json_arguments in choices]
        return next(filter(self._writes_calls, formats), formats[0])

    def _writes_calls(self, calls: CallFormat) -> bool:
        """Return whether the template writes such a call, with its arguments as JSON or in a form of its own."""
        text = (self.render(_probe(calls.empty, calls)) or "").rpartition(QUESTION)[2]  # without the list of tools
        if CALL.name not in text or "Brest" not in text:
            return False
        if calls.json_arguments:
            return json.dumps(CALL.arguments) in text
        return repr(CALL.arguments)[1:-1] not in text

    def _find_reasoning_format(self, called: bool) -> ReasoningFormat:
        """Try where the template reads reasoning in turns with or without a call."""
        for fields in _FIELDS:
            if (form := self._in_field(called, fields)) is not None:
                return form
        parts = [{"type": "thinking", "thinking": REASONING}, {"type": "text", "text": ANSWER}]
        text = self.render(self.probe(called, parts))
        if text is not None and self._reads(text, called) and "'type'" not in text and '"type"' not in text:
            return ReasoningFormat("parts", *self.tags)
        opening, closing = self._frame_elsewhere(called)
        for written in (opening, ""):
            text = self.render(self.probe(called, written + REASONING + closing + ANSWER))
            if text is not None and self._reads(text, called) and self._is_framed(text, opening, closing):
                return ReasoningFormat("content", written, closing)
        return ReasoningFormat("before", opening, closing)

    def _in_field(self, called: bool, fields: tuple[str, ...]) -> ReasoningFormat | None:
        """Return what the template writes around reasoning in ``fields``, if it reads these."""
        probe = self.probe(called, "" if called else ANSWER)
        text = self.render([probe[0], {**probe[1], **dict.fromkeys(fields, REASONING)}])
        if text is None or not self._reads(text, called, content=not called):
            return None
        prompt = self.render(probe[:-1], called=called, prompting=True) or ""
        without = self.render(probe) or ""
        before, _, after = text.partition(REASONING)
        rest = without[len(prompt) :] if without.startswith(prompt) else ""
        start = len(prompt) if before.startswith(prompt) else len(before)
        stop = after.find(ANSWER) if not called else len(after) - len(rest) if rest and after.endswith(rest) else 0
        return ReasoningFormat("field", before[start:], after[: max(stop, 0)], fields)

    def _find_kept_blanks(self, called: bool) -> bool:
        """Try an answer that begins with blanks, with its reasoning in a field and in tags."""
        content = f"    {ANSWER}"
        question, answer = self.probe(called, content)
        fields = dict.fromkeys(self.reasoning_format(called).fields, REASONING)
        trimmed = self.render([question, {**answer, **fields}])
        kept = self.render(self.probe(called, REASONING.join(TAGS[0]) + content))
        return trimmed is not None and content not in trimmed and kept == trimmed.replace(ANSWER, content)

    def _frame_elsewhere(self, called: bool) -> tuple[str, str]:
        """Return what the template writes around reasoning in the other kind of turns, or else the usual tags."""
        for fields in _FIELDS:
            other = self._in_field(not called, fields)
            if other is not None and other.open.strip() and other.close.strip():
                return other.open, other.close
        return self._frame_of_empty_block() or self.tags

    def _frame_of_empty_block(self) -> tuple[str, str] | None:
        """Return the opening and the closing of the empty reasoning block before an answer, if there is one."""
        opening, closing = (tag.strip() for tag in self.tags)
        prompt = self.render([plain_message("user", QUESTION)], prompting=True) or ""
        before, answer, _ = (self.render(_probe(ANSWER)) or "").partition(ANSWER)
        block = before.removeprefix(prompt)
        if not answer or not prompt or block == before or "".join(block.split()) != opening + closing:
            return None
        at = (block.index(opening) + len(opening) + block.index(closing)) // 2
        return block[:at], block[at:]

    def _reads(self, text: str, called: bool, *, content: bool = True) -> bool:
        """Return whether the rendering of a probe has the reasoning before the content and the call of the turn."""
        reasoning = text.find(REASONING)
        others = [text.rfind(ANSWER)] if content else []
        others += [text.rfind(CALL.name)] if called else []
        return reasoning >= 0 and all(at > reasoning for at in others)

    def _is_framed(self, text: str, opening: str, closing: str) -> bool:
        """Return whether a rendering has ``opening`` and ``closing`` around reasoning once, or control tokens of its
        own there."""
        before, _, after = text.partition(REASONING)
        before, between = before.rstrip(), after[: after.find(ANSWER)]
        opening, closing = opening.strip(), closing.strip()
        if before.endswith(opening):
            if before.removesuffix(opening).rstrip().endswith((opening, closing)):
                return False
        elif before.endswith(closing) or not any(c.stop == len(before) for c in self._controls.find(before)):
            return False
        return closing in between or any(True for _ in self._controls.find(between))

    @cached_property
    def turn_opening(self) -> str:
        """The opening of an assistant's turn if the template has no generation prompt, so that the model writes it."""
        asked = self.render([plain_message("user", QUESTION)])
        if asked is None or asked != self.render([plain_message("user", QUESTION)], prompting=True):
            return ""
        header, answer, _ = (self.render(_probe(ANSWER)) or "").partition(ANSWER)
        opening = header.removeprefix(asked) if answer and header.startswith(asked) else ""
        return opening if opening.strip() else ""

    @cached_property
    def prefill(self) -> str:
        """The beginning of an answer that the template writes in a prompt, but not in a finished turn."""
        prompt = self.render([plain_message("user", QUESTION)], prompting=True) or ""
        header, answer, _ = (self.render(_probe(ANSWER)) or "").partition(ANSWER)
        return prompt.removeprefix(header) if answer and prompt.startswith(header) else ""

    def probe(self, called: bool, content: Any) -> list[dict[str, Any]]:
        """Return a question and an answer, with a call if ``called``."""
        if called and not content:
            content = self.call_format.empty
        return _probe(content, self.call_format if called else None)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, called: bool | None = None, prompting: bool = False
    ) -> str | None:
        """Render ``messages``; return None if the template refuses them.

        If there are calls (or ``called``), a tool is listed, unless the template refuses that.
        """
        if called is None:
            called = any("tool_calls" in message for message in messages)
        with_tool = self._rendered(messages, [_TOOL], prompting) if called else None
        return with_tool if with_tool is not None else self._rendered(messages, [], prompting)

    def _rendered(self, messages: Sequence[Mapping[str, Any]], tools: list[Any], prompting: bool) -> str | None:
        try:
            return self._template.render(messages, tools, prompting).text
        except REFUSALS:
            return None


def plain_message(role: str, content: Any) -> dict[str, Any]:
    """Return a plain message."""
    return {"role": role, "content": content}


def _probe(content: Any, calls: CallFormat | None = None) -> list[dict[str, Any]]:
    """Return a question and an answer with ``content``, and with a call in the form ``calls`` if that is given."""
    answer = plain_message("assistant", content)
    if calls is not None:
        arguments: Any = json.dumps(CALL.arguments) if calls.json_arguments else CALL.arguments
        function = {"name": CALL.name, "arguments": arguments}
        answer["tool_calls"] = [{"type": "function", "id": calls.id_of(CALL, 1, 0, 0), "function": function}]
    return [plain_message("user", QUESTION), answer]
