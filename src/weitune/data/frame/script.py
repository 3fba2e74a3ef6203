"""Render the turns of one conversation with one template, its look-alikes of control tokens disguised.

A conversation with look-alikes is rendered twice: by transformers, and disguised (:mod:`.tracing`). Both must give the
same text; the disguised one then tells which control tokens the template wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from weitune.data.conversation import Conversation
from weitune.data.frame.control_tokens import ControlTokens, Disguise, NoStandInError, texts_in
from weitune.data.frame.conventions import Conventions, hidden
from weitune.data.frame.probe_dialogues import ReasoningFormat
from weitune.data.frame.template import REFUSALS, ChatTemplate, Rendered
from weitune.data.problems import data_problem, framing_error
from weitune.errors import DataError


class Refusal(Exception):  # noqa: N818  (always caught, and raised again as a DataError)
    """A template cannot frame a conversation: ``problem`` says why.

    ``reason`` and ``turn`` (from 0) decide which changes are tried (:mod:`.fixes`). The fix of ``problem`` is for when
    none of them works.
    """

    def __init__(self, message_id: str, /, *, reason: str = "", turn: int = 0, **values: Any) -> None:
        self.problem = data_problem(message_id, **values)
        self.reason, self.turn = reason, turn
        super().__init__(str(self.problem))

    def error(self, conversation: Conversation, fix: str | None = None) -> DataError:
        return framing_error(conversation.origin, replace(self.problem, fix=fix or self.problem.fix))


class Script:
    """A conversation and a template. Renderings are kept, since neighbouring turns need the same ones.

    Raises Refusal if its text leaves no character to disguise look-alikes with.
    """

    def __init__(
        self, template: ChatTemplate, controls: ControlTokens, conventions: Conventions, conversation: Conversation
    ) -> None:
        self.conversation = conversation
        self._template = template
        self._controls = controls
        self._conventions = conventions
        self._messages = conventions.messages(conversation.turns)
        self._tools = [dict(tool) for tool in conversation.tools]
        self.disguise: Disguise | None = controls.disguise(self._texts(), template.writes())
        if self.disguise is not None:
            try:
                self._hidden_messages = conventions.messages(conversation.turns, self.disguise.hide)
                self._hidden_tools = hidden(self._tools, self.disguise.hide)
            except NoStandInError:
                raise Refusal("data.control_tokens.no_stand_in") from None
        self._kept: dict[tuple[int, bool], Rendered] = {}

    def _texts(self) -> Iterator[str]:
        """Yield the conversation's own strings, as the template gets them."""
        for turn, message in zip(self.conversation.turns, self._messages, strict=True):
            yield turn.content
            if turn.reasoning is not None:
                yield turn.reasoning
            if turn.name is not None:
                yield turn.name
            if turn.tool_calls:
                yield from texts_in(message["tool_calls"])
            if turn.tool_call_id is not None:
                yield turn.tool_call_id
        yield from texts_in(self._tools)

    def render(self, turns: int, prompting: bool = False) -> Rendered:
        """Render the first ``turns`` turns; with ``prompting``, ask for the assistant's next one.

        Raises Refusal if the template does not accept them.
        """
        key = (turns, prompting)
        if key not in self._kept:
            rendered = self._rendered(turns, prompting)
            if turns and not prompting:
                rendered = self._with_reasoning(rendered, turns)
            self._kept[key] = rendered
        return self._kept[key]

    def _rendered(self, turns: int, prompting: bool) -> Rendered:
        """Render with transformers, and again disguised if there are look-alikes."""
        try:
            plain = self._template.render(self._messages[:turns], self._tools, prompting)
            if self.disguise is None:
                return plain
            messages, tools = self._hidden_messages[:turns], self._hidden_tools
            for _ in range(2):  # a template that writes the time may do so just as it changes
                traced = self._template.trace(messages, tools, prompting, self.disguise)
                if self.disguise.plain(traced) == plain.text:
                    return Rendered(traced, plain.generated)
                plain = self._template.render(self._messages[:turns], self._tools, prompting)
        except REFUSALS as error:
            raise self._refused(turns, error) from None
        raise Refusal("data.script.lookalikes", lookalikes=", ".join(self._lookalikes()))

    def _lookalikes(self) -> list[str]:
        """Return the control tokens that the conversation spells, or the strings that spell parts of one."""
        texts = [text for text in self._texts() if self._controls.dangerous(text)]
        spelled = {text[a:b] for text in texts for a, b in self._controls.lookalikes(text)}
        return sorted(spelled) or [repr(text[:40]) for text in texts]

    def _with_reasoning(self, rendered: Rendered, turns: int) -> Rendered:
        """Put the reasoning of the last turn before its answer, if the template does not write it."""
        turn = self.conversation.turns[turns - 1]
        if turn.role != "assistant" or turn.reasoning is None:
            return rendered
        form = self._conventions.reasoning_format(bool(turn.tool_calls))
        if form.place != "before":
            return rendered
        try:
            prompt = self.render(turns - 1, prompting=True).text
        except Refusal:  # there is no prompt for the turn, so it is not learned
            return rendered
        if not turn.reasoning and form.close.strip() and prompt.rstrip().endswith(form.close.strip()):
            return rendered  # the prompt has the empty reasoning block already
        text = rendered.text
        header, opening = _opened(prompt, form)
        if header != prompt and text.startswith(prompt):  # the finished turn has the opening too
            header, opening = prompt, ""
        if not text.startswith(header):
            return rendered  # the prompt is not its prefix, which is refused later
        at = len(header)
        if text.startswith(self._conventions.turn_opening, at):
            at += len(self._conventions.turn_opening)
        rest = at + self._conventions.empty_block_at(text, at)  # the template writes it before every answer
        closed = text[rest:].lstrip().startswith(form.close.strip() or " ")  # by the template itself
        block = opening + self.hide(turn.reasoning) + ("" if closed else form.close)
        shift = at + len(block) - rest
        moved = [(max(a, rest) + shift, b + shift) if b > at else (a, b) for a, b in rendered.generated]
        marks = sorted([*moved, (at, at + len(block))]) if self._template.marks_generation else []
        return Rendered(text[:at] + block + text[rest:], tuple(marks))

    def hide(self, text: str) -> str:
        return self.disguise.hide(text) if self.disguise is not None else text

    def reveal(self, text: str) -> str:
        return self.disguise.reveal(text) if self.disguise is not None else text

    def _refused(self, turns: int, error: Exception) -> Refusal:
        roles = ", ".join(turn.role for turn in self.conversation.turns[:turns]) or "no turns"
        return Refusal("data.script.refused", reason="turns", roles=roles, error=error)


def _opened(prompt: str, form: ReasoningFormat) -> tuple[str, str]:
    """Return ``prompt`` without the opening of reasoning at its end, and that opening, or else that of ``form``."""
    opening = form.open.strip()
    end = prompt.rstrip()
    if not opening or not end.endswith(opening):
        return prompt, form.open
    header = end.removesuffix(opening)
    return header, prompt[len(header) :]
