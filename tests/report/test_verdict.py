"""The first screen says what happened, whether it is good, what it cost, where the answers are, and what comes next."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import Page, made_run
from weitune.evaluate.evaluation import AnsweredQuestion, EvaluatedRows, Evaluation, GeneralScores, ModelScores, Scores
from weitune.evaluate.intervals import Change
from weitune.messages import say
from weitune.messages.language import speaking
from weitune.report.evaluation_section import evaluation_section
from weitune.report.run_record import RunRecord
from weitune.report.run_report import run_report, write_evaluation_report
from weitune.report.verdict import verdict
from weitune.run.data_record import ValidationSize
from weitune.run.events import SampleAnswer, Step, Validation


def said(record: RunRecord) -> str:
    return "".join(Page(verdict(record)).texts)


def without_evaluation(folder: Path, **made: Any) -> RunRecord:
    return replace(RunRecord.read(made_run(folder, **made)), evaluation=None)


def evaluated(tuned_right: float, *, change: Change) -> Evaluation:
    answers = Scores(answers=4, stopped=1.0, repeating=0.0)
    general = GeneralScores({"en": 0.8}, 1.0)
    base = ModelScores("base", None, 2.0, 7.4, answers, general)
    after = GeneralScores({"en": tuned_right}, 1.0, {"en": change})
    tuned = ModelScores("last", None, 1.0, 2.7, answers, after)
    asked = [AnsweredQuestion(f"question {k}", "r", {"base": f"before {k}", "last": f"after {k}"}) for k in range(5)]
    return Evaluation(EvaluatedRows("rows.json", 5, 5), 64, [base, tuned], asked)


def with_events(record: RunRecord, kept: str) -> RunRecord:
    """Return the run as it was before its last event, with ``kept`` in its place."""
    lines = (record.path / "events.jsonl").read_text().splitlines()[:-1]
    (record.path / "events.jsonl").write_text("\n".join([*lines, kept]) + "\n")
    return replace(RunRecord.read(record.path), evaluation=None)


def test_a_run_that_fell_and_rose_again(tmp_path: Path) -> None:
    text = said(without_evaluation(tmp_path / "run", losses=(5.0, 4.0, 4.5), validation=0.1))
    assert "learned from 2 rows in 20 steps, 40 s" in text
    assert "the loss fell from 5.000 to 4.000, its best, at step 10" in text
    assert "rose to 4.500 at step 20" in text
    assert "The adapter is that of the best step, 10." in text
    assert "Not known yet" in text
    assert f"weitune eval {tmp_path / 'run'} --gate" in text
    assert f"weitune chat {tmp_path / 'run'}" in text


def test_a_run_that_never_fell(tmp_path: Path) -> None:
    html = verdict(without_evaluation(tmp_path / "run", losses=(4.0, 4.1, 4.2)))
    assert "never fell below 4.000" in html
    assert '<div class="bad"><dt>Is it good?' in html


def test_the_adapter_of_another_step_than_the_best_is_told(tmp_path: Path) -> None:
    record = without_evaluation(tmp_path / "run")
    end = json.dumps({"event": "end", "step": 20, "adapter_step": 20})
    assert "not of the best one" in said(with_events(record, end))


def test_without_held_out_rows_the_answers_must_show_it(tmp_path: Path) -> None:
    text = said(without_evaluation(tmp_path / "run", losses=()))
    assert "went from 4.950 to 4.000" in text
    assert "No rows were held out" in text
    assert f"weitune eval {tmp_path / 'run'} --gate --data ROWS.jsonl" in text


def test_held_out_rows_that_were_measured_before_the_first_step_only(tmp_path: Path) -> None:
    text = said(without_evaluation(tmp_path / "run", losses=(5.0,), validation=0.1))
    assert "No rows were held out" not in text
    assert "have not been measured since the start" in text


def test_runs_that_ended_early_say_how_to_go_on(tmp_path: Path) -> None:
    record = without_evaluation(tmp_path / "run")
    stopped = said(with_events(record, json.dumps({"event": "stop", "step": 20, "reason": "SIGTERM"})))
    assert "stopped by SIGTERM after 20 of 20 steps" in stopped
    assert f"weitune train --resume {tmp_path / 'run'}" in stopped
    diverged = said(with_events(record, json.dumps({"event": "not finite", "step": 21})))
    assert "not a finite number after 20 of 20 steps" in diverged
    assert "--resume" not in diverged
    unfinished = said(with_events(record, ""))
    assert "It has not finished" in unfinished
    assert "Not known yet: the run is not finished." in unfinished


def test_forgetting_beyond_chance_and_broken_bounds(tmp_path: Path) -> None:
    record = RunRecord.read(made_run(tmp_path / "run"))
    fallen = replace(record, evaluation=evaluated(0.5, change=Change(-0.3, -0.4, -0.2)))
    assert "80% right before, 50% after (-30.0, -40.0 to -20.0 points: more than chance" in said(fallen)
    assert "A bound of --gate is broken:" in said(fallen)
    assert '<div class="bad"><dt>What did it cost' in verdict(fallen)
    assert "worse than the base, beyond chance" in evaluation_section(fallen.evaluation)
    kept = replace(record, evaluation=evaluated(0.8, change=Change(0.0, -0.1, 0.1)))
    assert "chance may explain it" in said(kept)
    assert "Every bound of --gate is kept." in said(kept)
    assert "beyond chance" not in evaluation_section(kept.evaluation)


def test_an_evaluation_of_an_adapter_that_was_left_behind_says_so(tmp_path: Path) -> None:
    record = RunRecord.read(made_run(tmp_path / "run", losses=()))  # its adapter is that of step 10
    evaluation = evaluated(0.8, change=Change(0.0, -0.1, 0.1))
    told = {}
    for step in (10, 5):
        base, tuned = evaluation.models
        found = replace(record, evaluation=replace(evaluation, models=[base, replace(tuned, step=step)]))
        told[step] = "".join(Page(run_report(found)).texts)
    sentence = "This was measured with the adapter of step 5; the run has one of step 10 now."
    assert sentence not in told[10]
    assert told[5].count(sentence) == 3  # whether it is good, what it cost, and the answers


def test_the_newest_adapter_of_a_run_that_goes_on_is_its_newest_checkpoint(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", checkpoints=(5, 15))
    assert RunRecord.read(run).adapter_step == 10  # of the final one
    shutil.rmtree(run / "adapter")
    with_events(RunRecord.read(run), "")
    assert RunRecord.read(run).adapter_step == 15  # of 20 steps


@pytest.mark.parametrize(("step", "kept"), [(None, 1), (10, 1), (5, 0)])
def test_the_demos_answers_are_those_of_the_newest_adapter(step: int | None, kept: int, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run / "answers.json").write_text(json.dumps({"step": step, "answers": [{"question": "?"}]}))
    assert len(RunRecord.read(run).answers) == kept


@pytest.mark.parametrize(
    ("method", "first", "last", "state", "told"),
    [
        ("dpo", 0.0, 0.8, "good", "80% of the held-out pairs"),
        ("dpo", 0.0, 0.5, "bad", "50% of the held-out pairs"),
        ("orpo", 0.7, 0.62, "bad", "Before training it was 70%."),
        ("orpo", 0.6, 0.62, "good", "Before training it was 60%."),
        ("kto", 0.0, 0.8, "good", "80% of the held-out answers on the side where they were judged"),
    ],
)
def test_preferences_are_judged_by_what_the_method_compares(
    method: str, first: float, last: float, state: str, told: str, tmp_path: Path
) -> None:
    record = without_evaluation(tmp_path / "run", validation=0.1, preference={"method": method})
    lines = [json.loads(line) for line in (record.path / "events.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] == "validation":
            line["rewards/accuracies"] = last if line["step"] else first
    (record.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = replace(RunRecord.read(record.path), evaluation=None)
    assert told in said(record)
    assert f'<div class="{state}"><dt>Is it good?' in verdict(record)


def test_the_best_of_each_measure_is_marked_by_its_direction(tmp_path: Path) -> None:
    page = evaluation_section(evaluated(0.7, change=Change(-0.1, -0.2, 0.1)))
    assert (
        '<td class="n" data-h="base"><b>2.000</b></td><td class="n best" data-h="last"><b>1.000</b></td>' in page
    )  # the lower loss
    assert (
        '<td class="n best" data-h="base"><b>80%</b></td><td class="n" data-h="last"><b>70%' in page
    )  # more right answers
    assert (
        '<td class="n" data-h="base"><b>1.000</b></td><td class="n" data-h="last"><b>1.000</b></td>' in page
    )  # equal: none is best


def test_no_answer_stands_on_a_page_twice(tmp_path: Path) -> None:
    record = RunRecord.read(made_run(tmp_path / "run"))
    html = run_report(replace(record, evaluation=evaluated(0.8, change=Change(0.0, -0.1, 0.1))))
    for k in range(5):
        assert html.count(f">before {k}<") == 1
    shown, _, folded = html.partition(">2 more answers<")
    assert "before 2" in shown
    assert "before 3" in folded


def test_answers_of_validations_that_stand_above_are_not_told_again(tmp_path: Path) -> None:
    record = without_evaluation(tmp_path / "run")
    answers = [
        replace(event, samples=[SampleAnswer("Who?", f"answer {k}", "in the data", stopped=True)])
        for k, event in enumerate(record.of_kind(Validation))
    ]
    page = run_report(replace(record, events=(*record.of_kind(Step), *answers)))
    assert [page.count(text) for text in ("answer 0", "answer 1", "answer 2", "in the data")] == [1, 1, 1, 1]
    assert page.index("answer 2") < page.index("Answers during training") < page.index("answer 1")


def test_a_page_about_an_evaluation_alone(tmp_path: Path) -> None:
    page = write_evaluation_report(tmp_path, "adapter", "base", evaluated(0.8, change=Change(0.0, -0.1, 0.1)))
    texts = "".join(Page(page.read_text(encoding="utf-8")).texts)
    assert "the loss fell from 2.000 to 1.000" in texts
    assert "before 4" in texts


def test_chinese_answers_say_their_language(tmp_path: Path) -> None:
    record = replace(
        RunRecord.read(made_run(tmp_path / "run")),
        answers=({"question": "你是谁？", "before": "AI", "after": "我是甄嬛"},),
    )
    html = run_report(record)
    assert '<td data-h="question" data-h-zh="问题" lang="zh">你是谁？</td>' in html
    assert '<td data-h="before" data-h-zh="训练前" lang="en">AI</td>' in html


def test_held_out_rows_are_not_counted_as_learned(tmp_path: Path) -> None:
    record = without_evaluation(tmp_path / "run", validation=0.5)
    assert record.data is not None
    held = replace(record, data=replace(record.data, validation=ValidationSize(examples=1)))
    assert "learned from one row" in said(held)


def test_rows_with_several_examples_are_not_counted_where_some_are_held_out(tmp_path: Path) -> None:
    record = without_evaluation(tmp_path / "run", validation=0.5)
    assert record.data is not None
    record.data.report.rows.trained, record.data.report.examples.kept = 3, 12
    assert "learned from 3 rows" in said(record)
    held = replace(record, data=replace(record.data, validation=ValidationSize(examples=6)))
    assert "was trained for 20 steps" in said(held)


def test_a_whole_model_is_offered_neither_export_nor_server(tmp_path: Path) -> None:
    for number, lora in enumerate(({}, "none")):
        page = run_report(without_evaluation(tmp_path / str(number), lora=lora))
        assert ("weitune export" in page, "weitune serve" in page) == (not number, not number)


@pytest.mark.parametrize(("examples", "told"), [(5000, "learned from 40 rows"), (5001, "was trained for 20 steps")])
def test_a_run_that_ends_early_has_not_learned_from_all_rows(tmp_path: Path, examples: int, told: str) -> None:
    """Its steps tell how many it saw, unless a row gives several examples."""
    record = without_evaluation(tmp_path / "run", train={"batch_size": 2})
    assert record.data is not None
    record.data.report.rows.trained, record.data.report.examples.kept = 5000, examples
    assert told in said(record)


def test_held_out_rows_are_named_in_the_readers_language(tmp_path: Path) -> None:
    """Whatever language ``weitune eval`` spoke."""
    for spoken in ("en", "zh"):
        with speaking(spoken):
            rows = EvaluatedRows(say("evaluate.evaluation_set.held_out", fraction=0.3), 5, 5)
            evaluation = replace(evaluated(0.8, change=Change(0.0, -0.1, 0.1)), rows=rows)
            evaluation.write(made_run(tmp_path / spoken))
        html = run_report(RunRecord.read(tmp_path / spoken))
        english, chinese = ("".join(Page(html, language).texts) for language in ("en", "zh"))
        assert "on 0.3 of the data, held out" in english
        assert "留出的数据（比例 0.3）" in chinese
        assert "held out" not in chinese
