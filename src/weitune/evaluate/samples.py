"""Answers to fixed questions, of a model during its training or of any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weitune.errors import InputError
from weitune.evaluate.evaluation_set import Question
from weitune.generate.engine import Engine
from weitune.generate.sampling import Sampling
from weitune.model.fast.attention import tree_attention


@dataclass(frozen=True, slots=True)
class Sample:
    """A question, the model's answer, and the data's."""

    prompt: str
    answer: str
    reference: str | None
    stopped: bool
    """Whether the answer ended by itself, not at its longest length."""


def answer_samples(
    engine: Engine, questions: Sequence[Question], max_new_tokens: int, schema: Mapping[str, Any] | None = None
) -> list[Sample]:
    """Return the likeliest answers to the ``questions`` that fit the model's context. No random number is drawn.

    With ``schema``, every answer that is not cut is JSON that fits it.
    """
    questions = [question for question in questions if _fits(engine, question)]
    if not questions:
        return []
    with tree_attention(engine.model, on=False):  # generating with a cache knows no tree
        conversations = [question.conversation for question in questions]
        answers = engine.answers(conversations, Sampling(max_new_tokens=max_new_tokens), schema=schema)
    return [
        Sample(question.text, answer.text, question.reference, answer.stopped)
        for question, answer in zip(questions, answers, strict=True)
    ]


def _fits(engine: Engine, question: Question) -> bool:
    try:
        engine.prompt(question.conversation)
    except InputError:
        return False
    return True
