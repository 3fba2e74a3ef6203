"""The report of a run that learned from preferences."""

from __future__ import annotations

import json
from pathlib import Path

from tests.report.pages import Page, made_run
from weitune.report.comparison import compare
from weitune.report.preference_section import preference_section
from weitune.report.run_record import RunRecord
from weitune.report.run_report import run_report


def with_pairs(folder: Path, *, change: float) -> RunRecord:
    """Return a run whose held-out chosen answers became likelier by ``change`` nats."""
    run = made_run(folder)
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] in {"step", "validation"}:
            share = line["step"] / 20
            line |= {"rewards/chosen": share, "rewards/rejected": -share, "rewards/margins": 2 * share}
            line |= {"rewards/accuracies": 0.5 + share / 2, "logps/chosen": -40 + change * share}
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunRecord.read(run)


def test_curves_of_training_and_of_held_out_pairs(tmp_path: Path) -> None:
    record = with_pairs(tmp_path / "run", change=3.0)
    page = Page(preference_section(record))
    assert page.tags.count("figure") == 3  # no kl
    for name in ("rewards/chosen", "rewards/margins", "rewards/margins, held out", "logps/chosen, held out"):
        assert name in page.texts
    assert "perplexity of chosen answers, last" in Page(run_report(record)).texts
    assert not any("less likely" in text for text in page.texts)


def test_a_fall_of_the_chosen_answers_is_told(tmp_path: Path) -> None:
    page = Page(preference_section(with_pairs(tmp_path / "run", change=-3.0)))
    assert any("less likely than they were: by 3.0 nats" in text for text in page.texts)


def test_other_runs_have_no_such_section(tmp_path: Path) -> None:
    assert preference_section(RunRecord.read(made_run(tmp_path / "run"))) == ""


def test_accuracies_side_by_side(tmp_path: Path) -> None:
    records = [with_pairs(tmp_path / name, change=0.0) for name in "ab"]
    assert "Share of held-out pairs on the right side" in Page(compare(records, tmp_path)).texts
