"""Bounds for a tuned model beside its base, so that a pipeline can stop a model that forgot or that repeats itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weitune.errors import InputError
from weitune.evaluate.evaluation import Gate, GateCheck, ModelScores

_POINTS = 100
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many percentage points a tuned model may be worse than its base."""

    general_drop: float = 4.0
    """right general answers, in each language"""
    stop_drop: float = 5.0
    """answers that end by themselves"""
    repetition_rise: float = 5.0
    """answers in which a run of 8 words or Chinese characters occurs twice"""


def judge_bounds(base: ModelScores, tuned: list[ModelScores], bounds: Bounds) -> Gate:
    """Return whether each of ``tuned`` keeps the bounds beside ``base``.

    Raises InputError if answers or general questions were not measured, since then nothing can be said.
    """
    checks = [check for model in tuned for check in _checks(base, model, bounds)]
    return Gate(all(check.passed for check in checks), checks)


def _checks(base: ModelScores, tuned: ModelScores, bounds: Bounds) -> Iterator[GateCheck]:
    if not (base.scores and base.general and tuned.scores and tuned.general):
        raise InputError("evaluate.gate.not_measured")

    def check(measure: str, before: float, after: float, bound: float, language: str | None = None) -> GateCheck:
        worse = after - before if measure == "repeating" else before - after
        passed = _POINTS * worse <= bound + _ROUNDING
        return GateCheck(tuned.which, measure, language, before, after, bound, passed)

    for language, before in base.general.right.items():
        yield check("general", before, tuned.general.right[language], bounds.general_drop, language)
    yield check("stopped", base.scores.stopped or 0.0, tuned.scores.stopped or 0.0, bounds.stop_drop)
    yield check("repeating", base.scores.repeating or 0.0, tuned.scores.repeating or 0.0, bounds.repetition_rise)
