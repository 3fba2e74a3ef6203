"""``weitune eval`` of a run that learned from preferences: pair accuracy, as training told it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.evaluate.test_run_evaluation import evaluate
from tests.faults.pairs import keys, make_pairs
from weitune.run.events import read_events
from weitune.training.run import train


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_pair_accuracy_is_that_of_training(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pairs = make_pairs(tmp_path / "inputs")
    run = train(pairs.recipe(tmp_path / "run", **keys(pairs, method)), device="cpu").path
    capsys.readouterr()
    assert evaluate(run, "--no-general", "--json") == 0
    base, tuned = json.loads(capsys.readouterr().out)["models"]
    told = {event["step"]: event for event in read_events(run) if event["event"] == "validation"}
    assert base["pairs"]["pairs"] == tuned["pairs"]["pairs"] == 4
    assert base["pairs"]["gained"] is None
    if method == "dpo":
        assert tuned["pairs"]["gained"] == pytest.approx(told[14]["rewards/accuracies"])
    for model, step in ((base, 0), (tuned, 14)):
        assert math.exp(model["loss"]) == pytest.approx(told[step]["perplexity"], rel=1e-3)
        assert model["pairs"]["chosen"] < 0
    assert evaluate(run, "--no-general", "--limit", "2") == 0
    shown = capsys.readouterr().out
    assert "pairs: chosen answer likelier, per token" in shown
    assert "pairs: chosen answer gained more" in shown

    if method == "kto":
        disliked = tmp_path / "disliked.jsonl"
        disliked.write_text(json.dumps({"prompt": "Who are you?", "completion": "Nobody.", "label": False}) + "\n")
        assert evaluate(run, "--no-general", "--json", "--data", str(disliked), "--output", str(tmp_path / "out")) == 0
        base, tuned = json.loads(capsys.readouterr().out)["models"]
        assert base["loss"] is tuned["loss"] is tuned["perplexity"] is None
        assert base["scores"]["exact"] is base["scores"]["chrf"] is None
        assert "–" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    dialogues = tmp_path / "dialogues.json"
    dialogues.write_text(json.dumps([{"instruction": "Who are you?", "input": "", "output": "I am Tiny."}]))
    assert evaluate(run, "--no-general", "--json", "--data", str(dialogues)) == 0
    base, tuned = json.loads(capsys.readouterr().out)["models"]
    assert base["pairs"] is tuned["pairs"] is None
    assert base["loss"] > 0
    dialogues.write_text('[{"instruction": "Who are you?"}]')
    assert evaluate(run, "--no-general", "--data", str(dialogues)) == 2
    assert "no pair" in capsys.readouterr().err or method == "kto"
