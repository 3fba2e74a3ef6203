"""Reports say what the folder says, load nothing, run nothing, and take no text for markup."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from tests.report.pages import EVIL, Page, made_run
from tests.tiny import save_tiny_run
from weitune.data.prepare.report import DataReport
from weitune.messages import in_english
from weitune.messages.language import speaking
from weitune.report.data_section import data_tables, place_text
from weitune.report.next_steps import next_commands
from weitune.report.run_record import RunRecord
from weitune.report.run_report import run_report, write_report
from weitune.run.data_record import DataRecord, KeptSize


def test_a_run_that_goes_on_after_its_end_is_not_finished(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    assert RunRecord.read(run).finished
    assert next_commands(RunRecord.read(run))[0].startswith("weitune chat")
    for events, state in (
        ([{"event": "resume", "step": 20, "steps": 40}], "not finished"),
        ([{"event": "stop", "step": 25, "reason": "SIGINT"}], "stopped"),
        ([{"event": "resume", "step": 25, "steps": 40}], "not finished"),
    ):
        with (run / "events.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
        record = RunRecord.read(run)
        assert not record.finished
        assert record.planned == 40
        assert record.stopped_by == ("SIGINT" if state == "stopped" else "")
        assert "train --resume" in next_commands(record)[0]
        with speaking("en"):
            texts = " ".join(Page(run_report(record)).texts)
        assert "20 of 40" in texts
        assert state in texts


def test_no_text_becomes_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", system=EVIL)
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert re.findall("<script.*?>", html) == ["<script>"] * 2  # of languages and copy buttons, allowed by their hashes
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert name not in {"src", "style"}, (name, value)
        assert name != "href" or value == "#answers", value
    assert "url(" not in html
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for code in re.findall("<(?:script|style)>(.*?)</", html, re.DOTALL):
        assert f"'sha256-{b64encode(sha256(code.encode()).digest()).decode()}'" in policy
    assert sum(EVIL in text for text in page.texts) >= 12  # every place shows it as it is


def test_a_page_says_all_in_both_languages_and_draws_it_once(tmp_path: Path) -> None:
    record = RunRecord.read(made_run(tmp_path / "run"))
    html = run_report(record)
    english, chinese = ("".join(Page(html, language).texts) for language in ("en", "zh"))
    for one, other in (
        ("Did it work?", "成功了吗？"),
        ("Speed, tokens a second", "速度，每秒 token 数"),
        ("rows trained", "训练的数据"),
        ("measured peak of this process", "这个进程实测的峰值"),
    ):
        assert (one in english, other in english) == (True, False)
        assert (one in chinese, other in chinese) == (False, True)
    assert html.count("<figure>") == 3
    with speaking("zh"):
        assert run_report(record).partition("<main>")[2] == html.partition("<main>")[2]


def test_it_says_what_the_folder_says(tmp_path: Path) -> None:
    text = " ".join(Page(run_report(RunRecord.read(made_run(tmp_path / "run")))).texts)
    for fact in (
        "20 of 20",
        "finished adapter of step 10",
        "4.000 at step 10",
        "1,234",
        "3.00 GiB",
        "2.00 GiB",
        "12.500",
    ):
        assert fact in text, fact
    assert f"weitune chat {tmp_path / 'run'}" in text
    assert "learning_rate: 0.0001" in text  # the whole recipe


def test_a_run_with_nothing_but_a_recipe_has_a_page(tmp_path: Path) -> None:
    page = Page(run_report(RunRecord.read(save_tiny_run(tmp_path / "run"))))
    assert "svg" not in page.tags
    assert any("not finished" in text for text in page.texts)


def test_broken_files_leave_their_part_out(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    for name in ("data.json", "environment.json", "evaluation.json"):
        (run / name).write_text("{")
    assert "svg" in Page(run_report(RunRecord.read(run))).tags


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        ("a b.json row 12 (line 13)", "a b.json 第 12 条 （第 13 行）"),
        ("rows.json row 3", "rows.json 第 3 条"),
        ("rows.json row 3, the chosen answer", "rows.json 第 3 条, 选中的回答"),
        ("of another kind", "of another kind"),
    ],
)
def test_the_place_of_a_row_is_told_in_the_readers_language(recorded: str, told: str) -> None:
    with speaking("zh"):
        assert place_text(recorded) == told
        assert in_english(place_text(recorded)) == recorded
    assert place_text(recorded) == recorded


def test_a_count_that_was_not_recorded_is_a_dash() -> None:
    tables = data_tables(DataRecord(DataReport.from_json({"rows": {"read": 0}})))
    assert "<td>0</td>" in tables
    assert tables.count("<td>–</td>") == 6


def test_kept_examples_are_counted() -> None:
    report = DataReport.from_json({"rows": {"read": 7}})
    tables = data_tables(DataRecord(report, kept=KeptSize(40, 900, 0.0984, "distill")))
    assert "<td>kept examples (`distill`): 9.8% of what the run learns</td><td>40</td>" in tables
    assert "kept examples" not in data_tables(DataRecord(report))


def test_preferences_are_counted() -> None:
    counts = {"pairs": 7, "divided": 0, "contradicting_pairs": 2, "both_ways": 3}
    tables = data_tables(DataRecord(DataReport.from_json({"preferences": counts})))
    for name, count in (
        ("pairs of a chosen and a rejected answer", 7),
        ("pairs that another one with the same prompt contradicts", 2),
        ("answers better in one row and worse in another", 3),
    ):
        assert f"<td>{name}</td><td>{count}</td>" in tables
    assert "learned as one liked" not in tables
    assert "pairs" not in data_tables(DataRecord(DataReport.from_json({"rows": {"read": 7}})))
