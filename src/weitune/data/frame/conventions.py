"""How a chat template wants to be given calls and reasoning, found by trying it on small dialogues.

Templates differ in what they read, and none says so:

    arguments of a call    an object (``arguments | tojson``, ``arguments.items()``), or JSON in a text
    reasoning              a field of the message (``reasoning_content``, ``thinking``, ``reasoning``), a part of its
                           content (``{"type": "thinking", …}``), ``<think>`` tags in its content, or nowhere

Each is decided once for a template, not row by row (:mod:`.probe_dialogues`). A template may read reasoning in turns
with a call only, so both kinds are tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.frame.control_tokens import ControlTokens
from weitune.data.frame.probe_dialogues import ANSWER, CALL, QUESTION, TAGS, THOUGHT, Calls, Probing, Thoughts, said
from weitune.data.frame.template import ChatTemplate

Hide = Callable[[str], str]
"""Disguises a row's text, or returns it as it is."""


def spoken(turn: Turn, tags: tuple[str, str] = TAGS[0], hide: Hide = str) -> str:
    """Return what a turn says as one text, reasoning first between ``tags``."""
    if turn.reasoning is None:
        return hide(turn.content)
    return tags[0] + hide(turn.reasoning) + tags[1] + hide(turn.content)


class Conventions:
    """The conventions of one template, each found when it is first needed."""

    def __init__(self, template: ChatTemplate, controls: ControlTokens) -> None:
        """Find nothing yet."""
        self._controls = controls
        self._probing = Probing(template, controls)
        self.tags = self._probing.tags
        self.thoughts = self._probing.thoughts

    def read(self, conversation: Conversation) -> Conversation:
        """Return ``conversation`` with the reasoning that opens an answer in the template's own words, such as
        ``[THINK]…[/THINK]`` or the analysis channel, as reasoning: outputs of such models, saved raw.

        Reasoning in ``<think>`` tags has been read with the row.
        """
        opening, closing = self._own_frame
        if not opening or not any(opening in turn.content for turn in conversation.turns):
            return conversation
        return replace(conversation, turns=tuple(_parted(turn, opening, closing) for turn in conversation.turns))

    @cached_property
    def _own_frame(self) -> tuple[str, str]:
        """What the template or the tokenizer has around the reasoning of an answer, if that is not ``<think>``."""
        thoughts = self.thoughts(False)
        opening, closing = thoughts.open.strip(), thoughts.close.strip()
        known = closing and opening != TAGS[0][0].strip() and any(True for _ in self._controls.find(opening))
        return (opening, closing) if known else ("", "")

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
            message = {"role": turn.role, **_thinking(turn, self._thoughts_of(turn), hide)}
        if turn.tool_calls and not message["content"]:
            message["content"] = self.calls.empty
        if turn.name is not None:
            message["name"] = hide(turn.name)
        return message

    def _thoughts_of(self, turn: Turn) -> Thoughts:
        """Return how the reasoning of ``turn`` is written: in tags if only so its content keeps its indentation."""
        thoughts = self.thoughts(bool(turn.tool_calls))
        indented = thoughts.place == "field" and turn.content[:1].isspace() and not turn.content.isspace()
        if indented and self._probing.tags_keep_blanks(bool(turn.tool_calls)):
            texts = f"{turn.reasoning}{turn.content}"
            if not any(tag.strip() in texts for tag in TAGS[0]):
                return Thoughts("content", *TAGS[0])
        return thoughts

    def _call(self, call: ToolCall, id_: str, hide: Hide) -> dict[str, Any]:
        if self.calls.as_text:
            arguments: Any = hide(json.dumps(call.arguments, ensure_ascii=False))
        else:
            arguments = hidden(call.arguments, hide)
        return {"type": "function", "id": hide(id_), "function": {"name": hide(call.name), "arguments": arguments}}

    @property
    def calls(self) -> Calls:
        """How calls are written."""
        return self._probing.calls

    @property
    def prefill(self) -> str:
        """What the template writes of an answer when it asks for one, and not in a finished turn."""
        return self._probing.prefill

    @property
    def turn_opening(self) -> str:
        """What opens an assistant's turn in a template that has no generation prompt, so that the model writes it."""
        return self._probing.turn_opening

    def empty_block_at(self, text: str, at: int) -> int:
        """Return the length of the empty thought at ``at`` in a rendering."""
        return next((len(block) for block in self.empty_blocks if text.startswith(block, at)), 0)

    @cached_property
    def empty_blocks(self) -> tuple[str, ...]:
        """What the template writes before an answer without reasoning where it would write reasoning: an empty thought.

        The longest first. Tried after a question and after a tool's answer, with and without a call. None where the
        model opens its own turns: there the block stands amid what it has to learn.
        """
        if self.turn_opening:
            return ()
        asked = [said("user", QUESTION)]
        told = [
            *self._probing.probe(True, ""),
            {**said("tool", "noon"), "tool_call_id": self.calls.id_of(CALL, 1, 0, 0)},
        ]
        found = {self._empty_block(before, called) for before in (asked, told) for called in (False, True)}
        return tuple(sorted(found - {""}, key=len, reverse=True))

    def _empty_block(self, before: list[dict[str, Any]], called: bool) -> str:
        """Return the empty thought in an answer after ``before``, or nothing."""
        thoughts = self.thoughts(called)
        turn = Turn("assistant", ANSWER, tool_calls=(CALL,) if called else ())
        prompt = self._probing.render(before, called=called or None, prompting=True)
        texts = [
            self._probing.render([*before, *self.messages([turn._replace(reasoning=reasoning)])])
            for reasoning in (None, THOUGHT)
        ]
        if prompt is None or not all(text and text.startswith(prompt) and ANSWER in text for text in texts):
            return ""
        without, given = (str(text)[len(prompt) : str(text).rfind(ANSWER)] for text in texts)
        if thoughts.place == "before":
            opened = prompt.rstrip().endswith(thoughts.open.strip() or " ")
            given = ("" if opened else thoughts.open) + THOUGHT + thoughts.close
        same = "".join(without.split()) == "".join(given.replace(THOUGHT, "").split())
        return without if same and THOUGHT in given and without.strip() else ""


def _parted(turn: Turn, opening: str, closing: str) -> Turn:
    """Return ``turn`` with what stands between ``opening`` and ``closing`` at its beginning as its reasoning."""
    text = turn.content.lstrip()
    if turn.role != "assistant" or turn.reasoning is not None or not text.startswith(opening):
        return turn
    reasoning, closed, content = text.removeprefix(opening).partition(closing)
    return turn._replace(reasoning=reasoning.strip("\n"), content=content.lstrip("\n")) if closed else turn


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


def hidden(value: Any, hide: Hide) -> Any:
    """Return the JSON-like ``value`` with every text of it through ``hide``."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {hidden(key, hide): hidden(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(item, hide) for item in value]
    return value
