"""Pair accuracy: by log-probability per token, and by what was gained over the base."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.preference.groups import answer
from weitune.data.preference.values import Group
from weitune.evaluate.evaluation import EvaluatedRows, Evaluation, ModelScores, read_evaluation
from weitune.evaluate.figures import figures
from weitune.evaluate.pairs import compared, score_pairs


def pair(chosen: int, rejected: int) -> Group:
    """Return a pair whose answers have so many tokens."""
    return Group((answer([1], [2] * chosen), answer([1], [3] * rejected)), (True, False))


def judged(prompt: int, liked: bool) -> Group:
    return Group((answer([prompt], [5]),), (liked,))


GROUPS = [pair(2, 4), pair(1, 1), pair(3, 3)]
BASE = [np.asarray([-4.0, -7.0]), np.asarray([-2.0, -1.0]), np.asarray([-3.0, -3.0])]
TUNED = [np.asarray([-3.0, -8.0]), np.asarray([-2.5, -2.0]), np.asarray([-3.0, -9.0])]


def test_of_the_base_the_likelier_answer_per_token_counts() -> None:
    found = score_pairs(GROUPS, BASE)
    assert found.preferred == pytest.approx(0.5 / 3)  # −2 < −1.75; −2 < −1; equal ones count half
    assert found.gained is None
    assert found.chosen == pytest.approx((-2 - 2 - 1) / 3)
    assert found.rejected == pytest.approx((-1.75 - 1 - 1) / 3)


def test_of_a_tuned_model_what_it_gained_counts_too() -> None:
    found = score_pairs(GROUPS, TUNED, BASE)
    assert found.preferred == pytest.approx(2 / 3)  # −1.5 > −2; −2.5 < −2; −1 > −3
    assert found.gained == 1.0  # 1 > −1; −0.5 > −1; 0 > −6
    assert found.interval is not None
    assert found.interval[0] < 2 / 3 < found.interval[1]


def test_judged_answers_to_one_prompt_are_compared() -> None:
    groups = [judged(1, True), judged(2, True), judged(1, False), judged(1, False), judged(3, False)]
    assert list(compared(groups)) == [(0, 2), (0, 3)]
    found = score_pairs(groups, [np.asarray([value]) for value in (-2.0, -1.0, -3.0, -1.0, -9.0)])
    assert found.preferred == 0.5
    alone = score_pairs(groups[1:2], [np.asarray([-1.0])])
    assert (alone.pairs, alone.preferred, alone.interval, alone.rejected) == (0, None, None, None)


def test_an_evaluation_keeps_and_shows_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    models = [
        ModelScores("base", None, 2.0, 7.4, pairs=score_pairs(GROUPS, BASE)),
        ModelScores("last", None, 1.0, 2.7, pairs=score_pairs(GROUPS, TUNED, BASE)),
    ]
    evaluation = Evaluation(EvaluatedRows("rows", 3, 0), None, models)
    evaluation.write(tmp_path)
    again = read_evaluation(tmp_path)
    assert again is not None
    assert [model.pairs for model in again.models] == [model.pairs for model in models]
    rows = {name: values for name, *values in figures(again.models)}
    assert rows["pairs: chosen answer gained more"] == ["–", "100%"]
    assert rows["pairs: chosen answer likelier, per token"][1].startswith("67%")
