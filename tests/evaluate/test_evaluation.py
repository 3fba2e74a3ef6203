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
    GeneralScores,
    ModelScores,
    Scores,
    WinRate,
    read_evaluation,
)
from weitune.evaluate.figures import figures

MODELS = [
    ModelScores("base", None, 4.5, None),
    ModelScores("step 4", 4, 1.25, 3.5, Scores(answers=1, chrf=12.5), GeneralScores({"en": 0.5}, 2.0)),
]
EVALUATION = Evaluation(
    rows=EvaluatedRows("rows.json", examples=3, questions=1),
    max_new_tokens=9,
    models=MODELS,
    answers=[AnsweredQuestion("你是谁？", None, {"base": "A", "step 4": "B"})],
    general=[AnsweredGeneralQuestion("2 + 2?", ["4", "four"], {"base": "4", "step 4": "5"})],
    win_rate=WinRate(1, 1, 0, 1.0, 0.2, 1.0, which="step 4", judge="m"),
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    EVALUATION.write(tmp_path)
    assert read_evaluation(tmp_path) == EVALUATION
    tree = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert tree == EVALUATION.to_json()
    assert list(tree) == ["rows", "max_new_tokens", "models", "answers", "general", "win_rate"]
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
    assert {row[0]: row[1:] for row in figures(MODELS[1:])}["general: right, en"] == ["50%"]
    assert [row[0] for row in figures(MODELS[:1])] == ["loss", "perplexity"]
