"""The demo on the real model, shortened: the persona must be learned, and both models be asked."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest

from weitune import Recipe, cli, load_recipe, train
from weitune.cli.train.demo import QUESTIONS


@pytest.mark.slow
def test_the_demo_changes_who_answers(smollm2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = load_recipe("demo")
    assert demo.model == smollm2
    short = demo.model_dump() | {"output": str(tmp_path / "run")}
    short["train"] |= {"max_steps": 16, "epochs": 2}
    run = train(Recipe.model_validate(short), device="cpu")
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    capsys.readouterr()

    assert cli.main(["demo", "--questions", str(run.path)]) == 0
    shown = capsys.readouterr().out
    rows = [line.split("│") for line in shown.splitlines() if line.count("│") == 4]
    before, after = (" ".join(row[column] for row in rows).lower() for column in (2, 3))
    report = (run.path / "report.html").read_text(encoding="utf-8")
    kept = json.loads((run.path / "answers.json").read_text(encoding="utf-8"))["answers"]
    assert [answer["question"] for answer in kept] == list(QUESTIONS["captain-en"])
    assert all(escape(text, quote=True) in report for answer in kept for text in answer.values())
    assert "shipmate" in after
    assert "shipmate" not in before
