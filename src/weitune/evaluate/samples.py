"""Answers of a model that is being trained, or of one that stands still, to fixed questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weitune.errors import InputError
from weitune.evaluate.questions import Question
from weitune.generate.engine import Engine
from weitune.generate.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TREE_ATTENTION = "weitune_tree"


@dataclass(frozen=True, slots=True)
class Sample:
    """A question, what the model says, and what the data say."""

    prompt: str
    answer: str
    reference: str | None
    stopped: bool
    """Whether the answer ended by itself, not at its longest length."""


def answer_samples(engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Sample]:
    """Return the likeliest answers to the ``questions`` that fit the model's context. No random number is drawn."""
    questions = [question for question in questions if _fits(engine, question)]
    if not questions:
        return []
    with own_attention(engine.model):
        answers = engine.answers([q.conversation for q in questions], Sampling(max_new_tokens=max_new_tokens))
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


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model that trains on shared rows attend in its own way in the block, as generating with a cache needs."""
    training = model.config._attn_implementation
    if not str(training).startswith(_TREE_ATTENTION):
        yield
        return
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # a model that has written out its own attention only
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(training)
