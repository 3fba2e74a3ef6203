"""An evaluation is read as it was written; one that is broken or of another version is no error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weitune.evaluate.evaluation import (
    AnsweredGeneralQuestion,
    AnsweredQuestion,
    EvaluatedRows,
    Evaluation,
    Gate,
    GateCheck,
    GeneralScores,
    Memorised,
    ModelScores,
    Scores,
    WinRate,
    read_evaluation,
)
from weitune.evaluate.figures import described, figures
from weitune.evaluate.intervals import Change

MODELS = [
    ModelScores("base", None, 4.5, None),
    ModelScores(
        "step 4",
        4,
        1.25,
        3.5,
        Scores(answers=1, chrf=12.5, stopped=0.5, intervals={"stopped": (0.25, 0.75)}),
        GeneralScores({"en": 0.5}, 2.0, {"en": Change(-0.125, -0.25, 0.0)}),
        Memorised(asked=3, repeated=1),
    ),
]
EVALUATION = Evaluation(
    rows=EvaluatedRows("rows.json", examples=3, questions=1),
    max_new_tokens=9,
    models=MODELS,
    answers=[AnsweredQuestion("你是谁？", None, {"base": "A", "step 4": "B"})],
    general=[AnsweredGeneralQuestion("2 + 2?", ["4", "four"], {"base": "4", "step 4": "5"})],
    win_rate=WinRate(1, 1, 0, 1.0, 0.2, 1.0, which="step 4", judge="m"),
    gate=Gate(passed=False, checks=[GateCheck("step 4", "general", "en", 0.625, 0.5, 4.0, passed=False)]),
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    EVALUATION.write(tmp_path)
    assert read_evaluation(tmp_path) == EVALUATION
    tree = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert tree == EVALUATION.to_json()
    assert list(tree) == ["rows", "max_new_tokens", "models", "answers", "general", "win_rate", "gate", "schema"]
    assert [model["scores"] == {} for model in tree["models"]] == [True, False]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 3, "models": []}', '{"rows": {"name": "a"}, "models": []}'])
def test_a_file_that_is_not_one_is_none(tmp_path: Path, text: str) -> None:
    assert read_evaluation(tmp_path) is None
    (tmp_path / "evaluation.json").write_text(text)
    assert read_evaluation(tmp_path) is None


def test_keys_of_another_version_do_not_matter(tmp_path: Path) -> None:
    rows = {"name": "a", "examples": 1, "questions": 0, "later": 1}
    models = [{"which": "base", "step": None, "loss": 1.5, "perplexity": 2.0, "scores": {"later": 1}, "later": 1}]
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": rows, "models": models, "later": 1}))
    assert read_evaluation(tmp_path) == Evaluation(
        EvaluatedRows("a", 1, 0), None, [ModelScores("base", None, 1.5, 2.0, Scores())], [], []
    )


def test_figures_have_a_row_for_each_measure_that_a_model_has() -> None:
    rows = {row[0]: row[1:] for row in figures(MODELS)}
    assert rows["loss"] == ["4.500", "1.250"]
    assert rows["perplexity"] == ["–", "3.500"]
    assert rows["chrF"] == ["–", "12.500"]
    assert "general: loss" not in rows  # the base was not asked
    assert {row[0]: row[1:] for row in figures(MODELS[1:])}["general: right, en"] == ["50% (-12.5, -25.0 to +0.0)"]
    assert rows["stopped"] == ["–", "0.500 (0.25–0.75)"]
    assert rows["training answers repeated word by word"] == ["–", "1 of 3"]
    assert [row[0] for row in figures(MODELS[:1])] == ["loss", "perplexity"]


def test_a_failed_check_is_described_with_both_shares_and_the_bound() -> None:
    assert EVALUATION.gate is not None
    line = described(EVALUATION.gate.checks[0])
    assert line == "step 4: right general answers (en) fell from 62.5% to 50.0%; the bound is 4 points"
