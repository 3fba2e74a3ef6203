"""The check for forgetting: can a tuned model still do what its base could?

Two hundred questions in English and two hundred in Chinese (knowledge, arithmetic, code, reasoning, instructions,
refusals, plain chat) are asked without the run's system prompt. An answer is right if it has one of the accepted words,
and none of the rejected ones before it; the loss is that of a plain reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from weitune.data.conversation import Conversation, Turn
from weitune.data.formats.reasoning import split_reasoning
from weitune.evaluate.metrics import units

_FILE = "general.jsonl"
_GREETING_UNITS = 2
"""Words, or Chinese characters, of the longest question whose repetition is an answer: “Good night”, “晚安”."""
_NUMERALS = "零〇一二三四五六七八九十百千万两"


@dataclass(frozen=True, slots=True)
class GeneralQuestion:
    """A question, a plain answer to it, and words of which a right answer has one."""

    language: str
    kind: str
    """knowledge, arithmetic, code, reasoning, instructions, refusals or chat"""
    prompt: str
    answer: str
    accept: tuple[str, ...]
    reject: tuple[str, ...] = ()
    """Words that make an answer wrong if they stand before every accepted one: the other choices of the question."""

    @property
    def asked(self) -> Conversation:
        return Conversation((Turn("user", self.prompt),))

    @property
    def answered(self) -> Conversation:
        return Conversation((Turn("user", self.prompt), Turn("assistant", self.answer)))

    def is_right(self, answer: str) -> bool:
        """Return whether ``answer`` has an accepted word, as a whole word, before any rejected one.

        What repeats the question at its beginning does not count, but for a greeting, which may be returned.
        """
        answer = _after_echo(answer.replace("’", "'"), self.prompt)
        accepted, rejected = _first(self.accept, answer), _first(self.reject, answer)
        return accepted is not None and (rejected is None or accepted <= rejected)


def general_questions(languages: Iterable[str] | None = None, per_language: int | None = None) -> list[GeneralQuestion]:
    """Return the questions that ship with weitune, or the first ``per_language`` of some ``languages``."""
    text = (resources.files("weitune.evaluate") / _FILE).read_text(encoding="utf-8")
    chosen: dict[str, list[GeneralQuestion]] = {}
    for row in map(json.loads, text.splitlines()):
        words = tuple(row["accept"]), tuple(row.get("reject", ()))
        question = GeneralQuestion(row["language"], row["kind"], row["prompt"], row["answer"], *words)
        chosen.setdefault(question.language, []).append(question)
    wanted = chosen if languages is None else [language for language in chosen if language in set(languages)]
    return [question for language in wanted for question in chosen[language][:per_language]]


def right_by_language(questions: Sequence[GeneralQuestion], answers: Sequence[str]) -> dict[str, list[bool]]:
    """Return for each language whether each answer to its questions is right; thoughts before it do not count."""
    by_language: dict[str, list[bool]] = {}
    for question, answer in zip(questions, answers, strict=True):
        said = split_reasoning(answer)[1]
        by_language.setdefault(question.language, []).append(question.is_right(said))
    return by_language


def shares(right: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """Return the share of right answers in each language."""
    return {language: sum(each) / len(each) for language, each in right.items()}


def _after_echo(answer: str, prompt: str) -> str:
    """Return ``answer`` without the whole ``prompt`` at its beginning, if that is more than a greeting."""
    echo = prompt.strip().rstrip("。.!！?？")
    said = answer.lstrip()
    echoed = len(units(echo)) > _GREETING_UNITS and said.casefold().startswith(echo.casefold())
    return said[len(echo) :] if echoed else answer


def _first(words: Sequence[str], text: str) -> int | None:
    """Return where the first of ``words`` stands in ``text``; None if none of them does."""
    found = [match.start() for word in words if (match := _pattern(word).search(text))]
    return min(found, default=None)


@cache
def _pattern(word: str) -> re.Pattern[str]:
    """Return a pattern of the whole word or its plural: 5 is in 5.0, but not in 15 or 0.5, 二 not in 十二, cat not in
    category.

    A word with capitals is found in capitals only.
    """
    if all(character in _NUMERALS for character in word):
        before, after = f"(?<![{_NUMERALS}])", f"(?![{_NUMERALS}])"
    else:
        before = r"(?<![0-9a-z])(?<![0-9][.,])" if _is_latin(word[0]) else ""
        plural = "(?:e?s)?" if word[-1].isascii() and word[-1].isalpha() else ""
        after = plural + r"(?:\.0+(?![0-9]))?(?![0-9a-z])(?![.,][0-9])" if _is_latin(word[-1]) else ""
    return re.compile(before + re.escape(word) + after, re.IGNORECASE if word == word.lower() else 0)


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
