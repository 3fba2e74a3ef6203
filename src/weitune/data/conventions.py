"""How a chat template wants to be given calls and reasoning, found by trying it on small dialogues.

Templates differ in what they read, and none says so:

    arguments of a call    an object (``arguments | tojson``, ``arguments.items()``), or JSON in a text
    reasoning              a field of the message (``reasoning_content``, ``thinking``, ``reasoning``), a part of its
                           content (``{"type": "thinking", …}``), ``<think>`` tags in its content, or nowhere

Each is decided once for a template, not row by row: a rendering without an exception may still be wrong, such as a
Python dictionary in place of JSON. A template may read reasoning in turns with a call only, so both kinds are tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

from weitune.data.control import ControlTokens
from weitune.data.conversation import ToolCall, Turn
from weitune.data.template import REFUSALS, ChatTemplate

Hide = Callable[[str], str]
"""Disguises a row's text, or returns it as it is."""

QUESTION, ANSWER, THOUGHT = "When is high tide?", "At noon, captain.", "The moon was full yesterday"
CALL = ToolCall("tide_times", {"port": "Brest"})
_TOOL = {
    "type": "function",
    "function": {"name": CALL.name, "description": "Tells the tides.",
                 "parameters": {"type": "object", "properties": {"port": {"type": "string"}}}},
}  # fmt: skip
_TAGS = (("<think>\n", "\n</think>\n\n"), ("[THINK]", "[/THINK]"))
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
    return next((tags for tags in _TAGS if all(tag.strip() in controls.ids for tag in tags)), _TAGS[0])


def spoken(turn: Turn, tags: tuple[str, str] = _TAGS[0], hide: Hide = str) -> str:
    """Return what a turn says as one text, reasoning first between ``tags``."""
    if turn.reasoning is None:
        return hide(turn.content)
    return tags[0] + hide(turn.reasoning) + tags[1] + hide(turn.content)


class Conventions:
    """The conventions of one template, each found when it is first needed."""

    def __init__(self, template: ChatTemplate, controls: ControlTokens) -> None:
        """Find nothing yet."""
        self._template = template
        self._controls = controls
        self.tags = tags_of(controls)
        self.thoughts = cache(self._find_thoughts)

    def messages(self, turns: Sequence[Turn], hide: Hide = str) -> list[dict[str, Any]]:
        """Return ``turns`` as the template wants them, with every text of theirs through ``hide``."""
        messages: list[dict[str, Any]] = []
        ids: dict[str, str] = {}  # as the row has them, and as they are written
        open_calls: list[str] = []
        number = 0
        for turn in turns:
            message = self._message(turn, hide)
            if turn.tool_calls:
                open_calls = [
                    self.calls.id_of(call, len(messages), i, number + i) for i, call in enumerate(turn.tool_calls)
                ]
                number += len(open_calls)
                ids |= {call.id or id_: id_ for call, id_ in zip(turn.tool_calls, open_calls, strict=True)}
                message["tool_calls"] = [
                    self._call(call, id_, hide) for call, id_ in zip(turn.tool_calls, open_calls, strict=True)
                ]
            if turn.role == "tool":
                answered = turn.tool_call_id or (open_calls[0] if open_calls else None)
                if answered is not None:
                    answered = ids.get(answered, answered)
                    message["tool_call_id"] = hide(answered)
                    open_calls = [other for other in open_calls if other != answered]
            messages.append(message)
        return messages

    def _message(self, turn: Turn, hide: Hide) -> dict[str, Any]:
        if turn.reasoning is None:
            content: Any = hide(turn.content)
            message: dict[str, Any] = {"role": turn.role, "content": content}
        else:
            message = {"role": turn.role, **_thinking(turn, self.thoughts(bool(turn.tool_calls)), hide)}
        if turn.tool_calls and not message["content"]:
            message["content"] = self.calls.empty
        if turn.name is not None:
            message["name"] = hide(turn.name)
        return message

    def _call(self, call: ToolCall, id_: str, hide: Hide) -> dict[str, Any]:
        if self.calls.as_text:
            arguments: Any = hide(json.dumps(call.arguments, ensure_ascii=False))
        else:
            arguments = hidden(call.arguments, hide)
        return {"type": "function", "id": hide(id_), "function": {"name": hide(call.name), "arguments": arguments}}

    @cached_property
    def calls(self) -> Calls:
        """How calls are written; as objects if the template knows none."""
        found = [Calls(as_text, empty, named) for named in (False, True) for empty in ("", None)
                 for as_text in (False, True)]  # fmt: skip
        return next(filter(self._writes_calls, found), found[0])

    def _writes_calls(self, calls: Calls) -> bool:
        """Tell whether the template writes a call given so, with JSON for its arguments or a form of its own."""
        text = (self._try(_probe(calls.empty, calls)) or "").rpartition(QUESTION)[2]  # without the list of tools
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
        text = self._try(self._probe(called, parts))
        if text is not None and self._reads(text, called) and "'type'" not in text and '"type"' not in text:
            return Thoughts("parts", *self.tags)
        opening, closing = self._frame_elsewhere(called)
        for written in (opening, ""):
            text = self._try(self._probe(called, written + THOUGHT + closing + ANSWER))
            if text is not None and self._reads(text, called) and self._is_framed(text, opening, closing):
                return Thoughts("content", written, closing)
        return Thoughts("before", opening, closing)

    def _in_field(self, called: bool, fields: tuple[str, ...]) -> Thoughts | None:
        """Return what stands around reasoning in ``fields``, if it is read there."""
        probe = self._probe(called, "" if called else ANSWER)
        text = self._try([probe[0], {**probe[1], **dict.fromkeys(fields, THOUGHT)}])
        if text is None or not self._reads(text, called, content=not called):
            return None
        prompt = self._try(probe[:-1], called=called, prompting=True) or ""
        without = self._try(probe) or ""
        before, _, after = text.partition(THOUGHT)
        rest = without[len(prompt) :] if without.startswith(prompt) else ""
        start = len(prompt) if before.startswith(prompt) else len(before)
        stop = after.find(ANSWER) if not called else len(after) - len(rest) if rest and after.endswith(rest) else 0
        return Thoughts("field", before[start:], after[: max(stop, 0)], fields)

    def _frame_elsewhere(self, called: bool) -> tuple[str, str]:
        """Return what stands around reasoning in the other kind of turns, if the template writes it there."""
        for fields in _FIELDS:
            other = self._in_field(not called, fields)
            if other is not None and other.open.strip() and other.close.strip():
                return other.open, other.close
        return self.tags

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
    def prefill(self) -> str:
        """What the template writes of an answer when it asks for one, and not in a finished turn."""
        prompt = self._try([_said("user", QUESTION)], prompting=True) or ""
        header, _, said = (self._try(_probe(ANSWER)) or "").partition(ANSWER)
        return prompt.removeprefix(header) if said and prompt.startswith(header) else ""

    def empty_block_at(self, text: str, at: int) -> int:
        """Return the length of the empty thought at ``at`` in a rendering."""
        return next((len(block) for block in self.empty_blocks if text.startswith(block, at)), 0)

    @cached_property
    def empty_blocks(self) -> tuple[str, ...]:
        """What the template writes before an answer without reasoning where it would write reasoning: an empty thought.

        The longest first. Tried after a question and after a tool's answer, with and without a call.
        """
        asked = [_said("user", QUESTION)]
        told = [*self._probe(True, ""), {**_said("tool", "noon"), "tool_call_id": self.calls.id_of(CALL, 1, 0, 0)}]
        found = {self._empty_block(before, called) for before in (asked, told) for called in (False, True)}
        return tuple(sorted(found - {""}, key=len, reverse=True))

    def _empty_block(self, before: list[dict[str, Any]], called: bool) -> str:
        """Return the empty thought in an answer after ``before``, or nothing."""
        thoughts = self.thoughts(called)
        turn = Turn("assistant", ANSWER, tool_calls=(CALL,) if called else ())
        prompt = self._try(before, called=called or None, prompting=True)
        texts = [
            self._try([*before, *self.messages([turn._replace(reasoning=reasoning)])]) for reasoning in (None, THOUGHT)
        ]
        if prompt is None or not all(text and text.startswith(prompt) and ANSWER in text for text in texts):
            return ""
        without, given = (str(text)[len(prompt) : str(text).rfind(ANSWER)] for text in texts)
        if thoughts.place == "before":
            given = thoughts.open + THOUGHT + thoughts.close
        same = "".join(without.split()) == "".join(given.replace(THOUGHT, "").split())
        return without if same and THOUGHT in given and without.strip() else ""

    def _probe(self, called: bool, content: Any) -> list[dict[str, Any]]:
        """Return a question and an answer, perhaps a call."""
        if called and not content:
            content = self.calls.empty
        return _probe(content, self.calls if called else None)

    def _try(
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


def _thinking(turn: Turn, thoughts: Thoughts, hide: Hide) -> dict[str, Any]:
    """Return content and fields of a message with reasoning."""
    if thoughts.place == "field":
        return {"content": hide(turn.content), **dict.fromkeys(thoughts.fields, hide(turn.reasoning or ""))}
    if thoughts.place == "parts":
        parts = [{"type": "thinking", "thinking": hide(turn.reasoning or "")}]
        return {"content": [*parts, {"type": "text", "text": hide(turn.content)}]}
    if thoughts.place == "content":
        return {"content": spoken(turn, (thoughts.open, thoughts.close), hide)}
    return {"content": hide(turn.content)}


def _said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _probe(content: Any, calls: Calls | None = None) -> list[dict[str, Any]]:
    """Return a question and an answer with ``content``, perhaps a call as ``calls`` has it."""
    answer = _said("assistant", content)
    if calls is not None:
        arguments: Any = json.dumps(CALL.arguments) if calls.as_text else CALL.arguments
        function = {"name": CALL.name, "arguments": arguments}
        answer["tool_calls"] = [{"type": "function", "id": calls.id_of(CALL, 1, 0, 0), "function": function}]
    return [_said("user", QUESTION), answer]


def hidden(value: Any, hide: Hide) -> Any:
    """Return the JSON-like ``value`` with every text of it through ``hide``."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {hidden(key, hide): hidden(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(item, hide) for item in value]
    return value
