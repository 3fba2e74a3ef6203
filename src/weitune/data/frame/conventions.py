"""The form in which a chat template reads calls and reasoning, detected by trying it on small dialogues.

Templates differ, and none says what it reads:

    arguments of a call    an object (``arguments | tojson``, ``arguments.items()``), or a JSON string
    reasoning              a field of the message (``reasoning_content``, ``thinking``, ``reasoning``), a part of its
                           content (``{"type": "thinking", …}``), ``<think>`` tags in its content, or nowhere

Each is decided once for a template, not row by row (:mod:`.probe_dialogues`). A template may read reasoning only in
turns with a call, so both kinds of turns are tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.frame.probe_dialogues import (
    ANSWER,
    CALL,
    QUESTION,
    REASONING,
    TAGS,
    ReasoningFormat,
    TemplateProbe,
    plain_message,
)

Hide = Callable[[str], str]
"""Disguises a row's text (:mod:`.control_tokens`), or returns it unchanged."""


def content_with_reasoning(turn: Turn, tags: tuple[str, str] = TAGS[0], hide: Hide = str) -> str:
    """Return the content of a turn, preceded by its reasoning between ``tags`` if it has any."""
    if turn.reasoning is None:
        return hide(turn.content)
    return tags[0] + hide(turn.reasoning) + tags[1] + hide(turn.content)


class Conventions(TemplateProbe):
    """The conventions of one template, each detected when it is first needed."""

    def read(self, conversation: Conversation) -> Conversation:
        """Return ``conversation`` with reasoning taken out of answers that begin with it in the template's own frame.

        Raw outputs of such models have it, as ``[THINK]…[/THINK]`` or in an analysis channel. Reasoning in ``<think>``
        tags has been read with the row.
        """
        opening, closing = self._own_frame
        if not opening or not any(opening in turn.content for turn in conversation.turns):
            return conversation
        return replace(conversation, turns=tuple(_parted(turn, opening, closing) for turn in conversation.turns))

    @cached_property
    def _own_frame(self) -> tuple[str, str]:
        """What opens and closes the reasoning of an answer, if that is not ``<think>``; else two empty strings."""
        form = self.reasoning_format(False)
        opening, closing = form.open.strip(), form.close.strip()
        known = closing and opening != TAGS[0][0].strip() and any(True for _ in self._controls.find(opening))
        return (opening, closing) if known else ("", "")

    def messages(self, turns: Sequence[Turn], hide: Hide = str) -> list[dict[str, Any]]:
        """Return ``turns`` as messages in the form that the template reads, with ``hide`` applied to their strings."""
        messages: list[dict[str, Any]] = []
        ids: dict[str, str] = {}  # a call's id in the row to its id in the message
        open_calls: list[str] = []
        number = 0
        for turn in turns:
            message = self._message(turn, hide)
            if turn.tool_calls:
                open_calls = [
                    self.call_format.id_of(call, len(messages), i, number + i) for i, call in enumerate(turn.tool_calls)
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
            message = {"role": turn.role, **_thinking(turn, self._reasoning_format_of(turn), hide)}
        if turn.tool_calls and not message["content"]:
            message["content"] = self.call_format.empty
        if turn.name is not None:
            message["name"] = hide(turn.name)
        return message

    def _reasoning_format_of(self, turn: Turn) -> ReasoningFormat:
        """Return the form of the reasoning of ``turn``: tags if its content keeps its indentation only after those."""
        form = self.reasoning_format(bool(turn.tool_calls))
        indented = form.place == "field" and turn.content[:1].isspace() and not turn.content.isspace()
        if indented and self.tags_keep_blanks(bool(turn.tool_calls)):
            texts = f"{turn.reasoning}{turn.content}"
            if not any(tag.strip() in texts for tag in TAGS[0]):
                return ReasoningFormat("content", *TAGS[0])
        return form

    def _call(self, call: ToolCall, id_: str, hide: Hide) -> dict[str, Any]:
        if self.call_format.json_arguments:
            arguments: Any = hide(json.dumps(call.arguments, ensure_ascii=False))
        else:
            arguments = hidden(call.arguments, hide)
        return {"type": "function", "id": hide(id_), "function": {"name": hide(call.name), "arguments": arguments}}

    def empty_block_at(self, text: str, at: int) -> int:
        """Return the length of the empty reasoning block at ``at`` in a rendering."""
        return next((len(block) for block in self.empty_blocks if text.startswith(block, at)), 0)

    @cached_property
    def empty_blocks(self) -> tuple[str, ...]:
        """The empty reasoning blocks that the template writes before answers without reasoning, the longest first.

        Tried after a question and after a tool's answer, with and without a call. There are none where the model opens
        its own turns: there the block is in the middle of what it has to learn.
        """
        if self.turn_opening:
            return ()
        asked = [plain_message("user", QUESTION)]
        told = [
            *self.probe(True, ""),
            {**plain_message("tool", "noon"), "tool_call_id": self.call_format.id_of(CALL, 1, 0, 0)},
        ]
        blocks = {self._empty_block(before, called) for before in (asked, told) for called in (False, True)}
        return tuple(sorted(blocks - {""}, key=len, reverse=True))

    def _empty_block(self, before: list[dict[str, Any]], called: bool) -> str:
        form = self.reasoning_format(called)
        turn = Turn("assistant", ANSWER, tool_calls=(CALL,) if called else ())
        prompt = self.render(before, called=called or None, prompting=True)
        texts = [
            self.render([*before, *self.messages([turn._replace(reasoning=reasoning)])])
            for reasoning in (None, REASONING)
        ]
        if prompt is None or not all(text and text.startswith(prompt) and ANSWER in text for text in texts):
            return ""
        without, given = (str(text)[len(prompt) : str(text).rfind(ANSWER)] for text in texts)
        if form.place == "before":
            opened = prompt.rstrip().endswith(form.open.strip() or " ")
            given = ("" if opened else form.open) + REASONING + form.close
        same = "".join(without.split()) == "".join(given.replace(REASONING, "").split())
        return without if same and REASONING in given and without.strip() else ""


def _parted(turn: Turn, opening: str, closing: str) -> Turn:
    """Return ``turn`` with the text between ``opening`` and ``closing`` at its beginning as its reasoning."""
    text = turn.content.lstrip()
    if turn.role != "assistant" or turn.reasoning is not None or not text.startswith(opening):
        return turn
    reasoning, closed, content = text.removeprefix(opening).partition(closing)
    return turn._replace(reasoning=reasoning.strip("\n"), content=content.lstrip("\n")) if closed else turn


def _thinking(turn: Turn, form: ReasoningFormat, hide: Hide) -> dict[str, Any]:
    """Return content and fields of a message with reasoning."""
    if form.place == "field":
        return {"content": hide(turn.content), **dict.fromkeys(form.fields, hide(turn.reasoning or ""))}
    if form.place == "parts":
        parts = [{"type": "thinking", "thinking": hide(turn.reasoning or "")}]
        return {"content": [*parts, {"type": "text", "text": hide(turn.content)}]}
    if form.place == "content":
        return {"content": content_with_reasoning(turn, (form.open, form.close), hide)}
    return {"content": hide(turn.content)}


def hidden(value: Any, hide: Hide) -> Any:
    """Return the JSON-like ``value`` with ``hide`` applied to every string in it."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {hidden(key, hide): hidden(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(item, hide) for item in value]
    return value
