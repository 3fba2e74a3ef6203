"""The framing of the self-llm tutorials, token for token, for exact agreement with their published runs.

    <|im_start|>system\\n{system}<|im_end|>\\n<|im_start|>user\\n{question}<|im_end|>\\n<|im_start|>assistant\\n
    {answer}<pad>

The first line is tokenized by itself and not learned; answer and pad token are learned.

Single turn only; the pad token ends the answer. ``<|im_start|>`` and ``<|im_end|>`` are control tokens in the framing,
never in the text of a row. Only the question and the answer are tokenized for each row; the rest is constant.
"""

from __future__ import annotations

from typing import Any

from weitune.data.conversation import Conversation
from weitune.data.encode import Draft, Learned, Piece, Text
from weitune.data.render import Framing
from weitune.data.template import framing_error, spoken
from weitune.errors import DataError, ModelError

_FRAMING = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class TutorialFraming(Framing):
    """Frames one question and one answer as the tutorials do."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ModelError if the tokenizer has no pad token, which ends the answers."""
        super().__init__(tokenizer)
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "the tutorial's framing ends answers with the pad token, and this tokenizer has none",
                "Use `tokens.template: chat`, or a tokenizer with a pad token.",
            )
        self.end_of_turn = int(tokenizer.pad_token_id)
        im_end = self._controls.ids.get("<|im_end|>")
        self.stop_tokens = (self.end_of_turn,) if im_end in (None, self.end_of_turn) else (self.end_of_turn, im_end)
        self.notes.append(
            "The tutorial's framing teaches the pad token as the end of an answer; generation stops there "
            "and at <|im_end|>, which the base model writes."
        )

    def draft(self, conversation: Conversation) -> list[Draft]:
        """Return one draft. Raises DataError if there is more than a system prompt, a question and an answer."""
        *asked, answer = conversation.turns or (None,)
        if answer is None or answer.role != "assistant" or answer.tool_calls:
            raise _not_single(conversation)
        pieces = self._framing(Conversation(tuple(asked), conversation.tools, conversation.origin))
        start = len(pieces)
        if text := spoken(answer):
            pieces.append(Text(text, bare=False))
        pieces.append(self.end_of_turn)
        learned = (Learned(start, len(pieces), answer.weight),) if answer.weight else ()
        return [Draft(tuple(pieces), learned, conversation.origin)]

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens of the framing. Raises DataError if there is more than a system prompt and a question."""
        return list(self.encode([Draft(tuple(self._framing(conversation)))])[0].input_ids)

    def describe(self) -> dict[str, Any]:
        """Return the kind, the stop tokens and the tokenizer's hash."""
        return {
            "kind": "tutorial",
            "end_of_turn": self.end_of_turn,
            "stop_tokens": list(self.stop_tokens),
            "tokenizer_sha256": self.tokenizer_hash(),
        }

    def _framing(self, conversation: Conversation) -> list[Piece]:
        roles = [turn.role for turn in conversation.turns]
        if roles not in (["user"], ["system", "user"]) or conversation.tools:
            raise _not_single(conversation)
        texts = [conversation.system or "", conversation.turns[-1].content]
        disguise = self._controls.disguise(texts, _FRAMING)
        if disguise is not None:
            texts = [disguise.hide(text) for text in texts]
        return self._encoder.split(_FRAMING.format(*texts), (), disguise)[0]


def _not_single(conversation: Conversation) -> DataError:
    return framing_error(
        conversation.origin,
        "one question and one answer without tools, which is all the tutorial's framing knows",
        ", ".join(turn.role for turn in conversation.turns) + (" and tools" if conversation.tools else ""),
        "Use `tokens.template: chat` for longer dialogues.",
    )
