"""``plan`` and ``train`` say the same about what a run can become."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.families import save_family
from weitune import cli


def test_plan_and_train_say_what_a_run_can_be_exported_as(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_family(tmp_path / "model", "cohere2")
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "Who are you?", "input": "", "output": "I am the keeper."}]))
    options = ["--model", str(model), "--data", str(rows), "--device", "cpu", "--train.max_steps", "1"]
    capsys.readouterr()
    assert cli.main(["plan", *options, "--json"]) == 0
    exports = json.loads(capsys.readouterr().out)["exports"]
    assert exports["merged"] == {"possible": True, "why_not": None}
    assert not exports["gguf"]["possible"]
    lines = ["can be exported as: merged, vLLM", f"not as gguf, gguf-adapter, ollama: {exports['gguf']['why_not']}"]
    assert cli.main(["plan", *options]) == 0
    assert "\n".join(lines) in capsys.readouterr().out
    assert cli.main(["train", *options, "--output", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line in lines] == lines
    assert told.index(lines[0]) < 10
