"""A dialogue: turns are added as they are said, and the oldest are dropped when the model's context is full.

    system ── user ── assistant ── user ── assistant ── user ── …
              └────── dropped first ─────┘                      the system prompt and the last question always stay

Only the command line and :meth:`Run.chat` keep dialogues; the engine itself remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weitune.data.conversation import Conversation, Turn
from weitune.data.formats.reasoning import turn_from_text
from weitune.errors import InputError
from weitune.generate.chat_engine import ChatEngine, ChatStream
from weitune.generate.sampling import Sampling

History = Iterable["Turn | Mapping[str, str]"]
"""Earlier turns, as turns or as ``{"role": …, "content": …}``."""


class Dialogue:
    """The turns between a user and an engine, with the system prompt before them."""

    def __init__(self, system: str | None = None, history: History = ()) -> None:
        """Begin with ``history`` and the system prompt ``system``; an empty one is a turn without text, None is none.

        A system turn at the beginning of ``history`` replaces ``system``. Raises InputError for a turn without role or
        text.
        """
        self.turns = [_as_turn(turn) for turn in history]
        if self.turns and self.turns[0].role == "system":
            system = self.turns.pop(0).content
        self.system = system
        self.dropped = 0
        """How many turns were dropped because they no longer fit the model's context."""

    def ask(
        self, engine: ChatEngine, text: str, sampling: Sampling | None = None, schema: Mapping[str, Any] | None = None
    ) -> ChatStream:
        """Return the answer to ``text`` as a stream; call :meth:`remember` when it is complete.

        With ``schema`` the answer is JSON that fits it, unless it is cut.
        The oldest turns that leave no room for the answer are dropped for good. Raises InputError if the question alone
        is too long; nothing is dropped then.
        """
        sampling = sampling or Sampling()
        start, conversation = self._fitting(engine, Turn("user", text), sampling)
        stream = engine.stream(conversation, sampling, schema)
        del self.turns[:start]
        self.dropped += start
        return stream

    def remember(self, question: str, answer: str) -> None:
        """Add a question and its answer, unless the answer is empty."""
        if answer:
            self.turns += [Turn("user", question), turn_from_text("assistant", answer)]

    @property
    def last_question(self) -> str | None:
        return next((turn.content for turn in reversed(self.turns) if turn.role == "user"), None)

    def copy(self) -> Dialogue:
        return Dialogue(self.system, self.turns)

    def before_last_question(self) -> Dialogue:
        asked = max((at for at, turn in enumerate(self.turns) if turn.role == "user"), default=0)
        return Dialogue(self.system, self.turns[:asked])

    def _fitting(self, engine: ChatEngine, question: Turn, sampling: Sampling) -> tuple[int, Conversation]:
        """Return the first turn to keep so that the answer has room, and the conversation from there.

        The room is that of the longest answer asked for, but at most a quarter of the context.
        """
        turns = [*self.turns, question]
        context = engine.context_tokens
        room = 0 if context is None else min(sampling.max_new_tokens, context // 4)
        # Templates want a user to open the dialogue, so it is cut only there.
        starts = [at for at, turn in enumerate(turns) if at == 0 or turn.role == "user"]
        for start in starts:
            conversation = Conversation(tuple(turns[start:])).with_system(self.system)
            if context is None or engine.prompt_tokens(conversation) + room <= context:
                break
        return start, conversation


def _as_turn(turn: Turn | Mapping[str, str]) -> Turn:
    """Return a turn given in either form. Raises InputError for anything else."""
    if isinstance(turn, Turn):
        return turn
    role, content = turn.get("role"), turn.get("content")
    if role not in {"system", "user", "assistant", "tool"} or not isinstance(content, str):
        raise InputError("generate.dialogue.invalid_turn", turn=dict(turn))
    return turn_from_text(role, content)  # type: ignore[arg-type]
