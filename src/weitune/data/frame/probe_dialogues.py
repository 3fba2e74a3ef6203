"""Small dialogues that find out how a template wants to be given calls and reasoning.

A rendering without an exception may still be wrong, such as a Python dictionary in place of JSON, so what is looked for
is the probe's own text: the call with its arguments, the reasoning before the answer, once and in tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

from weitune.data.conversation import ToolCall
from weitune.data.frame.control_tokens import ControlTokens
from weitune.data.frame.template import REFUSALS, ChatTemplate

QUESTION, ANSWER, THOUGHT = "When is high tide?", "At noon, captain.", "The moon was full yesterday"
CALL = ToolCall("tide_times", {"port": "Brest"})
_TOOL = {
    "type": "function",
    "function": {"name": CALL.name, "description": "Tells the tides.",
                 "parameters": {"type": "object", "properties": {"port": {"type": "string"}}}},
}  # fmt: skip
TAGS = (("<think>\n", "\n</think>\n\n"), ("[THINK]", "[/THINK]"))
"""What opens and closes reasoning in the tokens of models whose template does not say; the first if none are there."""
_FIELDS = (("reasoning_content", "thinking"), ("reasoning_content", "thinking", "reasoning"))
"""Names of the field for reasoning. transformers itself gives the first two together."""


class Calls(NamedTuple):
    """How a message with calls is written."""

    as_text: bool
    """Whether arguments are JSON in a text."""
    empty: str | None
    """The content of a message that only calls."""
    names_in_ids: bool = False
    """Whether the name of a function is written only in the call's id, `functions.NAME:NUMBER` (Kimi K2)."""

    def id_of(self, call: ToolCall, turn: int, place: int, number: int) -> str:
        """Return the id of a call, its own if that will do. It is the ``place``-th of ``turn`` and the ``number``-th of
        all. Mistral's templates insist on nine letters or digits."""
        if self.names_in_ids:
            return call.id if call.id and call.name in call.id else f"functions.{call.name}:{number}"
        return call.id or f"call{turn:03}{place:02}"


class Thoughts(NamedTuple):
    """How a message's reasoning is written. ``before``: not at all, so that it is put where the answer begins."""

    place: Literal["field", "parts", "content", "before"]
    open: str
    close: str
    fields: tuple[str, ...] = ()


def tags_of(controls: ControlTokens) -> tuple[str, str]:
    """Return what opens and closes reasoning for a tokenizer."""
    return next((tags for tags in TAGS if all(tag.strip() in controls.ids for tag in tags)), TAGS[0])


class Probing:
    """Tries one template; what is found is kept."""

    def __init__(self, template: ChatTemplate, controls: ControlTokens) -> None:
        """Try nothing yet."""
        self._template = template
        self._controls = controls
        self.tags = tags_of(controls)
        self.thoughts = cache(self._find_thoughts)
        """How reasoning is written in turns with or without a call."""
        self.tags_keep_blanks = cache(self._find_kept_blanks)
        """Whether a content keeps the blanks at its beginning only if its reasoning stands before it in `<think>` tags,
        not in a field, in turns with or without a call."""

    @cached_property
    def calls(self) -> Calls:
        """How calls are written; as objects if the template knows none."""
        found = [Calls(as_text, empty, named) for named in (False, True) for empty in ("", None)
                 for as_text in (False, True)]  # fmt: skip
        return next(filter(self._writes_calls, found), found[0])

    def _writes_calls(self, calls: Calls) -> bool:
        """Tell whether the template writes a call given so, with JSON for its arguments or a form of its own."""
        text = (self.render(_probe(calls.empty, calls)) or "").rpartition(QUESTION)[2]  # without the list of tools
        if CALL.name not in text or "Brest" not in text:
            return False
        if calls.as_text:
            return json.dumps(CALL.arguments) in text
        return repr(CALL.arguments)[1:-1] not in text

    def _find_thoughts(self, called: bool) -> Thoughts:
        """Try where reasoning is read in turns with or without a call."""
        for fields in _FIELDS:
            if (thoughts := self._in_field(called, fields)) is not None:
                return thoughts
        parts = [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}]
        text = self.render(self.probe(called, parts))
        if text is not None and self._reads(text, called) and "'type'" not in text and '"type"' not in text:
            return Thoughts("parts", *self.tags)
        opening, closing = self._frame_elsewhere(called)
        for written in (opening, ""):
            text = self.render(self.probe(called, written + THOUGHT + closing + ANSWER))
            if text is not None and self._reads(text, called) and self._is_framed(text, opening, closing):
                return Thoughts("content", written, closing)
        return Thoughts("before", opening, closing)

    def _in_field(self, called: bool, fields: tuple[str, ...]) -> Thoughts | None:
        """Return what stands around reasoning in ``fields``, if it is read there."""
        probe = self.probe(called, "" if called else ANSWER)
        text = self.render([probe[0], {**probe[1], **dict.fromkeys(fields, THOUGHT)}])
        if text is None or not self._reads(text, called, content=not called):
            return None
        prompt = self.render(probe[:-1], called=called, prompting=True) or ""
        without = self.render(probe) or ""
        before, _, after = text.partition(THOUGHT)
        rest = without[len(prompt) :] if without.startswith(prompt) else ""
        start = len(prompt) if before.startswith(prompt) else len(before)
        stop = after.find(ANSWER) if not called else len(after) - len(rest) if rest and after.endswith(rest) else 0
        return Thoughts("field", before[start:], after[: max(stop, 0)], fields)

    def _find_kept_blanks(self, called: bool) -> bool:
        """Try an answer that begins with blanks, once for each way to give its reasoning."""
        content = f"    {ANSWER}"
        question, answer = self.probe(called, content)
        fields = dict.fromkeys(self.thoughts(called).fields, THOUGHT)
        trimmed = self.render([question, {**answer, **fields}])
        kept = self.render(self.probe(called, THOUGHT.join(TAGS[0]) + content))
        return trimmed is not None and content not in trimmed and kept == trimmed.replace(ANSWER, content)

    def _frame_elsewhere(self, called: bool) -> tuple[str, str]:
        """Return what stands around reasoning in the other kind of turns, if the template writes it there."""
        for fields in _FIELDS:
            other = self._in_field(not called, fields)
            if other is not None and other.open.strip() and other.close.strip():
                return other.open, other.close
        return self._frame_of_empty_thought() or self.tags

    def _frame_of_empty_thought(self) -> tuple[str, str] | None:
        """Return the opening and the closing of the empty thought that the template writes before an answer, if any."""
        opening, closing = (tag.strip() for tag in self.tags)
        prompt = self.render([said("user", QUESTION)], prompting=True) or ""
        before, answer, _ = (self.render(_probe(ANSWER)) or "").partition(ANSWER)
        block = before.removeprefix(prompt)
        if not answer or not prompt or block == before or "".join(block.split()) != opening + closing:
            return None
        at = (block.index(opening) + len(opening) + block.index(closing)) // 2
        return block[:at], block[at:]

    def _reads(self, text: str, called: bool, *, content: bool = True) -> bool:
        """Tell whether the rendering of a probe has the reasoning before what the turn says and calls."""
        thought = text.find(THOUGHT)
        said = [text.rfind(ANSWER)] if content else []
        said += [text.rfind(CALL.name)] if called else []
        return thought >= 0 and all(at > thought for at in said)

    def _is_framed(self, text: str, opening: str, closing: str) -> bool:
        """Tell whether a rendering keeps what stands around reasoning, once, or has control tokens of its own there."""
        before, _, after = text.partition(THOUGHT)
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
        """What opens an assistant's turn in a template that has no generation prompt, so that the model writes it."""
        asked = self.render([said("user", QUESTION)])
        if asked is None or asked != self.render([said("user", QUESTION)], prompting=True):
            return ""
        header, answer, _ = (self.render(_probe(ANSWER)) or "").partition(ANSWER)
        opening = header.removeprefix(asked) if answer and header.startswith(asked) else ""
        return opening if opening.strip() else ""

    @cached_property
    def prefill(self) -> str:
        """What the template writes of an answer when it asks for one, and not in a finished turn."""
        prompt = self.render([said("user", QUESTION)], prompting=True) or ""
        header, answer, _ = (self.render(_probe(ANSWER)) or "").partition(ANSWER)
        return prompt.removeprefix(header) if answer and prompt.startswith(header) else ""

    def probe(self, called: bool, content: Any) -> list[dict[str, Any]]:
        """Return a question and an answer, perhaps a call."""
        if called and not content:
            content = self.calls.empty
        return _probe(content, self.calls if called else None)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, called: bool | None = None, prompting: bool = False
    ) -> str | None:
        """Render ``messages``; None if the template refuses them.

        With a tool where there are calls, or will be (``called``), if the template accepts one.
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


def said(role: str, content: Any) -> dict[str, Any]:
    """Return a plain message."""
    return {"role": role, "content": content}


def _probe(content: Any, calls: Calls | None = None) -> list[dict[str, Any]]:
    """Return a question and an answer with ``content``, perhaps a call as ``calls`` has it."""
    answer = said("assistant", content)
    if calls is not None:
        arguments: Any = json.dumps(CALL.arguments) if calls.as_text else CALL.arguments
        function = {"name": CALL.name, "arguments": arguments}
        answer["tool_calls"] = [{"type": "function", "id": calls.id_of(CALL, 1, 0, 0), "function": function}]
    return [said("user", QUESTION), answer]
