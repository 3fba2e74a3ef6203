"""The demo on the real model, shortened: the persona must be learned, and both models be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from weitune import Recipe, cli, load_recipe, train


@pytest.mark.slow
def test_the_demo_changes_who_answers(smollm2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = load_recipe("demo")
    assert demo.model == smollm2
    short = demo.model_dump() | {"output": str(tmp_path / "run")}
    short["train"] |= {"max_steps": 16, "epochs": 2}
    run = train(Recipe.model_validate(short), device="cpu")
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    before, after = (run.chat("Who are you?", checkpoint=which, max_new_tokens=40) for which in ("base", "last"))
    assert "shipmate" in after.lower()
    assert "shipmate" not in before.lower()
    capsys.readouterr()

    assert cli.main(["demo", "--questions", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "shipmate" in shown
