"""The framing of the self-llm tutorials, token for token, for exact agreement with their published runs.

    <|im_start|>system\\n{system}<|im_end|>\\n<|im_start|>user\\n{question}<|im_end|>\\n<|im_start|>assistant\\n
    {answer}<pad>

The first line is tokenized by itself and not learned; the answer and the pad token that ends it are learned. There is
a single turn. ``<|im_start|>`` and ``<|im_end|>`` are control tokens in the framing, never in the text of a row. Only
the question and the answer are tokenized for each row; the rest is constant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.control_tokens import NoStandInError
from weitune.data.frame.conventions import content_with_reasoning
from weitune.data.frame.encode import Draft, Learned, Piece, Text
from weitune.data.frame.framing import Framing
from weitune.data.frame.probe_dialogues import tags_of
from weitune.data.problems import data_problem, framing_error
from weitune.errors import DataError, ModelError
from weitune.messages import say

_SYSTEM, _QUESTION = "\ufdd0", "\ufdd1"  # noncharacters, so that no tokenizer has them in a control token
_SLOT = re.compile(f"([{_SYSTEM}{_QUESTION}])")
_FRAMING = f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n{_QUESTION}<|im_end|>\n<|im_start|>assistant\n"


class TutorialFraming(Framing):
    """Frames one question and one answer as the tutorials do.

    Raises ModelError if the tokenizer has no pad token, which ends the answers.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        if tokenizer.pad_token_id is None:
            raise ModelError("data.tutorial.no_pad_token")
        self.end_of_turn = int(tokenizer.pad_token_id)
        self._form = self._make_form()
        self._around = lru_cache(maxsize=64)(self._frame)
        im_end = self._controls.ids.get("<|im_end|>")
        self.stop_tokens = (self.end_of_turn,) if im_end in (None, self.end_of_turn) else (self.end_of_turn, im_end)
        self.notes.append(say("data.tutorial.ends_with_pad"))

    def draft(self, conversation: Conversation) -> list[Draft]:
        """Return one draft. Raises DataError if there is more than a system prompt, a question and an answer."""
        turns = conversation.turns
        if not turns or turns[-1].role != "assistant" or turns[-1].tool_calls:
            raise _not_single(conversation)
        answer = turns[-1]
        pieces = self._framing(conversation, turns[:-1])
        start = len(pieces)
        try:
            pieces += self._spoken(answer)
        except NoStandInError:
            raise framing_error(conversation.origin, data_problem("data.control_tokens.no_stand_in")) from None
        pieces.append((self.end_of_turn,))
        learned = (Learned(start, len(pieces), answer.weight),) if answer.weight else ()
        return [Draft(tuple(pieces), learned, conversation.origin)]

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens of the framing. Raises DataError if there is more than a system prompt and a question."""
        return list(self.encode([Draft(tuple(self._framing(conversation, conversation.turns)))])[0].input_ids)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "tutorial",
            "end_of_turn": self.end_of_turn,
            "stop_tokens": list(self.stop_tokens),
            "tokenizer_sha256": self.tokenizer_hash,
        }

    def _spoken(self, answer: Turn) -> list[Piece]:
        """Return the content of an answer, preceded by its reasoning in the tokenizer's tags if it has any."""
        if answer.reasoning is None:
            return [Text(answer.content, bare=False)] if answer.content else []
        text, tags = content_with_reasoning(answer, tags_of(self._controls)), "".join(tags_of(self._controls))
        if not self._controls.lookalikes(tags):
            return [Text(text, bare=False)]
        disguise = self._controls.disguise([answer.reasoning, answer.content], tags)
        if disguise is not None:
            text = content_with_reasoning(answer, tags_of(self._controls), disguise.hide)
        return self._encoder.split(text, (), disguise)[0]

    def _framing(self, conversation: Conversation, asked: Sequence[Turn]) -> list[Piece]:
        """Return the framing of the turns before the answer."""
        if not asked or asked[-1].role != "user" or len(asked) > 2 or conversation.tools:
            raise _not_single(conversation)
        if len(asked) == 2 and asked[0].role != "system":
            raise _not_single(conversation)
        around = self._around(asked[0].content if len(asked) == 2 else "")
        return [*around.before, Text(around.head + asked[-1].content + around.tail, around.bare), *around.after]

    def _make_form(self) -> list[Piece]:
        """Cut the framing at its control tokens; what is the same in every row is tokenized now."""
        form: list[Piece] = []
        pieces, _ = self._encoder.split(_FRAMING, (), None)
        for varies, run in groupby(pieces, key=lambda p: isinstance(p, Text) and bool(_SLOT.search(p.text))):
            same = list(run)
            form += same if varies else [self._encoder.known(same)]
        return form

    def _frame(self, system: str) -> _Frame:
        """Insert ``system``. Inserted text is not searched for control tokens."""
        [at] = [i for i, piece in enumerate(self._form) if isinstance(piece, Text) and _QUESTION in piece.text]
        before = [Text(p.text.replace(_SYSTEM, system), p.bare) if isinstance(p, Text) else p for p in self._form[:at]]
        asked = self._form[at]
        assert isinstance(asked, Text)  # noqa: S101  (for mypy)
        head, tail = (part.replace(_SYSTEM, system) for part in asked.text.split(_QUESTION))
        return _Frame(before, head, tail, asked.bare, self._form[at + 1 :])


class _Frame(NamedTuple):
    """The framing of a question with one system prompt: pieces, text in the question's own piece, pieces."""

    before: list[Piece]
    head: str
    tail: str
    bare: bool
    after: list[Piece]


def _not_single(conversation: Conversation) -> DataError:
    roles = ", ".join(turn.role for turn in conversation.turns)
    turns = say("data.tutorial.and_tools", turns=roles) if conversation.tools else roles
    return framing_error(conversation.origin, data_problem("data.tutorial.not_single_turn", turns=turns))
