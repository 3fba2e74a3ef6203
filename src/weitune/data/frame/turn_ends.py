"""The token that ends an assistant's turn, detected by rendering small dialogues.

A turn is rendered as the last one, and with another turn after it. What both renderings have after the answer belongs
to the turn, and the last control token there ends it:

    last         …At noon.<|end|>\\n<|endoftext|>
    followed     …At noon.<|end|>\\n<|user|>\\n…         <|end|> ends the turn
    last         …At noon.<|return|>
    followed     …At noon.<|end|><|start|>user…        no common token: <|return|>, which the last turn has
    last         …At noon.
    followed     …At noon.<|user|>\\n…                  no token at all: <|user|>, which opens the next turn

A token that ends every single call of a turn (``</tool_call>``) does not end the turn.
"""

from __future__ import annotations

from typing import NamedTuple

from weitune.data.conversation import Turn
from weitune.data.frame.control_tokens import Control, ControlTokens
from weitune.data.frame.conventions import Conventions
from weitune.data.frame.probe_dialogues import ANSWER, CALL, QUESTION
from weitune.data.frame.template import REFUSALS, ChatTemplate
from weitune.errors import ModelError


class TurnEnd(NamedTuple):
    """A token that ends a turn. ``following`` is not in a finished turn, since the next turn's first token ends it."""

    token: int
    following: str = ""


_ASKED = Turn("user", QUESTION)
_ANSWERED = Turn("assistant", ANSWER)
_CALLED = Turn("assistant", "", tool_calls=(CALL,))


class TurnEnds:
    """Finds how the turns of a template end."""

    def __init__(self, template: ChatTemplate, controls: ControlTokens, conventions: Conventions) -> None:
        self._template = template
        self._controls = controls
        self._conventions = conventions

    def of_answer(self) -> TurnEnd:
        """Return the end of an answer. Raises ModelError if the template writes none, or cannot write an answer."""
        try:
            self._render(_ASKED, prompting=True)
            text = self._render(_ASKED, _ANSWERED)
        except REFUSALS as error:
            raise ModelError("data.turn_ends.cannot_render", error=error) from None
        end = self._end(text, self._followed(_ASKED, _ANSWERED, Turn("user", "And low tide?")), ANSWER)
        if end is None:
            raise ModelError("data.turn_ends.none")
        return end

    def of_call(self, answer: TurnEnd) -> TurnEnd | None:
        """Return the end of a turn with a tool call, if the template knows such turns; ``answer`` ends the others."""
        text = self._followed(_ASKED, _CALLED)
        if CALL.name not in text:
            return None
        twice = self._followed(_ASKED, _CALLED._replace(tool_calls=(CALL, CALL._replace(arguments={"port": "Cork"}))))
        between = twice[twice.find(CALL.name) : twice.rfind(CALL.name)]
        each = {control.id for control in self._controls.find(between)} - {answer.token}
        return self._end(text, self._followed(_ASKED, _CALLED, Turn("tool", "noon")), CALL.name, each)

    def opens_turns(self) -> bool:
        """Return whether the template has no generation prompt, so that the model opens its turn itself."""
        prompt, asked = self._render(_ASKED, prompting=True), self._render(_ASKED)
        text = self._render(_ASKED, _ANSWERED)
        opening = self._controls.find(text, len(prompt), max(text.rfind(ANSWER), 0))
        return prompt == asked and any(True for _ in opening)

    def _end(
        self, last: str, followed: str, said: str, each: set[int] | frozenset[int] = frozenset()
    ) -> TurnEnd | None:
        """Return the end of a turn by what follows ``said`` in two renderings; the tokens in ``each`` do not count."""
        if said not in last:
            return None
        after = last[last.rfind(said) + len(said) :]
        later = followed[followed.rfind(said) + len(said) :] if said in followed else ""
        controls = [control for control in self._controls.find(after) if control.id not in each]
        common = [control for control in controls if later.startswith(after[: control.stop])]
        if common or controls:
            return TurnEnd((common or controls)[-1].id)
        first = self._first(later, len(after)) if later.startswith(after) else None
        return TurnEnd(first.id, later[len(after) : first.stop]) if first else None

    def _first(self, text: str, start: int) -> Control | None:
        """Return the control token that comes next in ``text`` from ``start``, with only white space before it."""
        control = next(self._controls.find(text, start), None)
        return control if control is not None and not text[start : control.start].strip() else None

    def _render(self, *turns: Turn, prompting: bool = False) -> str:
        return self._template.render(self._conventions.messages(turns), [], prompting).text

    def _followed(self, *turns: Turn) -> str:
        """Return the rendering; "" if the template refuses it."""
        try:
            return self._render(*turns)
        except REFUSALS:
            return ""
