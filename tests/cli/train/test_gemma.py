"""A real model of another family than Llama and Qwen: Gemma 3 270M learns, answers, and its export is proved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weitune import cli


@pytest.mark.slow
def test_gemma_3_learns_answers_and_is_exported(
    gemma3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    options = ["--model", str(gemma3), "--data", "builtin:captain-en", "--output", str(run), "--device", "cpu"]
    assert cli.main(["train", *options, "--train.max_steps", "8"]) == 0, capsys.readouterr().err
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 8
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])

    capsys.readouterr()
    assert cli.main(["chat", str(run), "--prompt", "Who are you?", "--max-new-tokens", "12", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip()

    options = ["--format", "merged", "--output", str(merged), "--prompts", "2"]
    assert cli.main(["export", str(run), *options]) == 0, capsys.readouterr().err
    assert json.loads((merged / "verification.json").read_text())["verdict"] == "passed"
