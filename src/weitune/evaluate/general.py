"""The check for forgetting: can a tuned model still do what its base could?

Fifty questions of general knowledge and simple instruction, half English and half Chinese, are asked without the run's
system prompt. An answer counts as right if it has one of the accepted words; the loss is that of a plain reference.
A persona may answer in its own voice; a model that was destroyed gives no right answers, and its loss is high.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from weitune.data.conversation import Conversation, Turn

_FILE = "general.jsonl"


@dataclass(frozen=True, slots=True)
class GeneralQuestion:
    """A question, a plain answer to it, and words of which a right answer has one."""

    language: str
    prompt: str
    answer: str
    accept: tuple[str, ...]

    @property
    def asked(self) -> Conversation:
        return Conversation((Turn("user", self.prompt),))

    @property
    def answered(self) -> Conversation:
        return Conversation((Turn("user", self.prompt), Turn("assistant", self.answer)))

    def is_right(self, answer: str) -> bool:
        lower = answer.lower()
        return any(word.lower() in lower for word in self.accept)


def general_questions() -> list[GeneralQuestion]:
    """Return the questions that ship with weitune."""
    text = (resources.files("weitune.evaluate") / _FILE).read_text(encoding="utf-8")
    rows = map(json.loads, text.splitlines())
    return [GeneralQuestion(row["language"], row["prompt"], row["answer"], tuple(row["accept"])) for row in rows]


def share_right(questions: Sequence[GeneralQuestion], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers in each language."""
    by_language: dict[str, list[bool]] = {}
    for question, answer in zip(questions, answers, strict=True):
        by_language.setdefault(question.language, []).append(question.is_right(answer))
    return {language: sum(right) / len(right) for language, right in by_language.items()}
