"""The forecast time of runs that learn from preferences: the same passes as in training, and the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from tests.training.reference.test_measured import rows
from weitune import cli
from weitune.training import timing
from weitune.training.loop import StepRecord
from weitune.training.preference import answer_meter


@pytest.mark.parametrize(
    ("method", "measured", "loss"),
    [
        ("dpo", 1 + 3, 0.6931),
        ("kto", (1 + 3) * 2 + 3, 0.5),  # and the mismatched answers of three steps
        ("orpo", 0, None),
    ],
)
def test_the_steps_that_are_timed_make_the_passes_of_training(
    method: str,
    measured: int,
    loss: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[int] = []
    measure = answer_meter.measure_answers
    monkeypatch.setattr(answer_meter, "measure_answers", lambda *args: calls.append(1) or measure(*args))
    records: list[StepRecord] = []
    stepped = timing._Stopwatch.stepped
    monkeypatch.setattr(
        timing._Stopwatch, "stepped", lambda self, record: records.append(record) or stepped(self, record)
    )
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows("judged" if method == "kto" else "pairs")))
    options: list[Any] = ["--model", save_tiny(tmp_path / "model"), "--data", data, "--preference.method", method]
    options += ["--train.batch_size", "3", "--device", "cpu", "--measure"]
    assert cli.main(["plan", *map(str, options), "--json"]) == 0
    assert len(calls) == measured
    assert loss is None or records[0].loss == pytest.approx(loss, abs=1e-4)
    time = json.loads(capsys.readouterr().out)["time"]
    assert (time["reference_seconds"] > 0) == (method != "orpo")
    assert cli.main(["plan", *map(str, options)]) == 0
    told = capsys.readouterr().out
    assert ("on top" in told.partition("evaluations come on top")[2]) == (method != "orpo")
    assert ("mismatched" in told) == (method == "kto")
