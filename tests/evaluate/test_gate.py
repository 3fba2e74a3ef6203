"""The gate passes what keeps its bounds, to the last point, and nothing else."""

from __future__ import annotations

import pytest

from weitune.errors import InputError
from weitune.evaluate.evaluation import GeneralScores, ModelScores, Scores
from weitune.evaluate.gate import Bounds, judge_bounds


def model(which: str, en: float, zh: float, stopped: float, repeating: float) -> ModelScores:
    scores = Scores(answers=100, stopped=stopped, repeating=repeating)
    return ModelScores(which, None, 1.0, 2.7, scores, GeneralScores({"en": en, "zh": zh}, 2.0))


BASE = model("base", 0.8, 0.6, 0.9, 0.1)


@pytest.mark.parametrize(
    ("tuned", "failed"),
    [
        (BASE, []),
        (model("last", 0.76, 0.56, 0.85, 0.15), []),
        (model("last", 1.0, 1.0, 1.0, 0.0), []),
        (model("last", 0.755, 0.6, 0.9, 0.1), [("general", "en")]),
        (model("last", 0.8, 0.5, 0.9, 0.1), [("general", "zh")]),
        (model("last", 0.8, 0.6, 0.84, 0.1), [("stopped", None)]),
        (model("last", 0.8, 0.6, 0.9, 0.16), [("repeating", None)]),
    ],
)
def test_bounds(tuned: ModelScores, failed: list[tuple[str, str | None]]) -> None:
    gate = judge_bounds(BASE, [tuned], Bounds())
    assert [(check.measure, check.language) for check in gate.checks if not check.passed] == failed
    assert gate.passed == (not failed)


def test_one_failing_checkpoint_fails_the_gate() -> None:
    gate = judge_bounds(BASE, [BASE, model("step 9", 0.1, 0.6, 0.9, 0.1)], Bounds())
    assert not gate.passed
    assert {check.which for check in gate.checks if not check.passed} == {"step 9"}


def test_what_was_not_measured_is_not_judged() -> None:
    with pytest.raises(InputError, match="nothing that --gate could judge"):
        judge_bounds(ModelScores("base", None, 1.0, 2.7), [BASE], Bounds())
