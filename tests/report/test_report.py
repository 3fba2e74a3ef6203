"""Reports say what the folder says, load nothing, run nothing, and take no text for markup."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny_run
from weitune import cli
from weitune.report.chart import Line, chart, thinned, ticks
from weitune.report.comparison import differences, results
from weitune.report.run_record import RunRecord
from weitune.report.run_report import run_report, write_report
from weitune.run.history import smoothed

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>\' "&amp;'
_VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def made_run(folder: Path, *, losses: tuple[float, ...] = (5.0, 4.0, 4.5), **recipe: Any) -> Path:
    run = save_tiny_run(folder, **recipe)
    events: list[dict[str, Any]] = [{"event": "start", "step": 0, "steps": 20}]
    events += [
        {"event": "step", "step": step, "loss": 5 - step / 20, "learning_rate": 1e-4, "grad_norm": "nan", "tokens": 100,
         "tokens_per_second": 50.0, "step_seconds": 2.0, "memory_bytes": 3 << 30} for step in range(1, 21)
    ]  # fmt: skip
    for k, loss in enumerate(losses):
        sample = {"prompt": EVIL, "answer": EVIL, "reference": EVIL, "stopped": True}
        events.append(
            {"event": "validation", "step": 10 * k, "loss": loss, "perplexity": math.exp(loss), "samples": [sample]}
        )
    events.append({"event": "end", "step": 20, "adapter_step": 10})
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "data.json").write_text(json.dumps({
        "sources": [{"name": EVIL, "rows": 3, "format": "alpaca"}],
        "rows": {"read": 3, "trained": 2, "set_aside": {EVIL: 1}},
        "examples": {"kept": 2, "cut": 0}, "tokens": {"all": 1234, "supervised": 56, "per_example": {"mean": 7.5}},
        "preview": [{"place": EVIL, "parts": [[EVIL, "learned"], [EVIL, "control"], [EVIL, "prompt"]]}],
    }))  # fmt: skip
    (run / "environment.json").write_text(
        json.dumps({"processor": EVIL, "forecast": {"weights": 1 << 30, EVIL: 1 << 30}})
    )
    scores = {"answers": 1, "chrf": 12.5, "bleu": None, "rouge_l": 0.1, "exact": 0, "distinct_1": 1, "distinct_2": 1,
              "stopped": 1, "tokens": 3}  # fmt: skip
    models = [{"which": which, "step": None, "loss": 1.5, "perplexity": None, "scores": scores, "general": None}
              for which in ("base", EVIL)]  # fmt: skip
    (run / "evaluation.json").write_text(json.dumps({
        "rows": {"name": EVIL, "examples": 1, "questions": 1}, "models": models,
        "answers": [{"prompt": EVIL, "reference": EVIL, "said": {"base": EVIL, EVIL: EVIL}}],
        "general": [], "win_rate": None,
    }))  # fmt: skip
    return run


def test_no_text_becomes_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", system=EVIL)
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert name not in {"src", "href", "style"}, (name, value)
    assert "url(" not in html
    assert any("default-src 'none'" in value for name, value in page.attributes if name == "content")
    assert sum(EVIL in text for text in page.texts) >= 12  # every place shows it as it is


def test_it_says_what_the_folder_says(tmp_path: Path) -> None:
    text = " ".join(Page(run_report(RunRecord.of(made_run(tmp_path / "run")))).texts)
    for fact in (
        "20 of 20",
        "finished; adapter of step 10",
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
    page = Page(run_report(RunRecord.of(save_tiny_run(tmp_path / "run"))))
    assert "svg" not in page.tags
    assert any("not finished" in text for text in page.texts)


def test_broken_files_leave_their_part_out(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    for name in ("data.json", "environment.json", "evaluation.json"):
        (run / name).write_text("{")
    assert "svg" in Page(run_report(RunRecord.of(run))).tags


class TestComparison:
    def test_only_what_differs_is_shown(self, tmp_path: Path) -> None:
        first = made_run(tmp_path / "a", losses=(5.0, 4.0))
        second = made_run(tmp_path / "b", losses=(5.0, 3.5), train={"learning_rate": 5e-4})
        records = [RunRecord.of(first), RunRecord.of(second)]
        rows = {row[0]: row[1:] for row in differences(records)}
        assert rows["train.learning_rate"] == ["0.0001", "0.0005"]
        assert set(rows) == {"train.learning_rate", "model"}  # each has its own model folder
        found = {row[0]: row[1:] for row in results(records)}
        assert found["validation loss, best"] == ["4.0000", "3.5000"]

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        runs = [str(made_run(tmp_path / name)) for name in "ab"]
        assert cli.main(["compare", *runs, "-o", str(tmp_path / "page.html")]) == 0
        assert "validation loss, best" in capsys.readouterr().out
        page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
        assert page.tags.count("svg") == 4
        assert "script" not in page.tags

    @pytest.mark.parametrize("arguments", [["a"], ["a", "nowhere"]])
    def test_wrong_input(self, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        made_run(tmp_path / "a")
        assert cli.main(["compare", *(str(tmp_path / name) for name in arguments)]) == 2
        assert capsys.readouterr().err

    def test_a_page_that_cannot_be_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        runs = [str(made_run(tmp_path / name)) for name in "ab"]
        assert cli.main(["compare", *runs, "-o", str(tmp_path / "no" / "page.html")]) == 2
        assert "cannot be written" in capsys.readouterr().err


class TestCharts:
    @pytest.mark.parametrize(("low", "high"), [(0, 1), (4.31, 5.87), (0, 702), (1e-5, 1e-4), (-3, 7), (99.9, 100.1)])
    def test_ticks_are_few_round_and_inside(self, low: float, high: float) -> None:
        found = ticks(low, high)
        assert 3 <= len(found) <= 6
        assert low - 1e-9 <= found[0] < found[-1] <= high + 1e-9
        gaps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
        assert gaps == {1.0}

    def test_one_value_is_one_tick(self) -> None:
        assert ticks(3.0, 3.0) == [3.0]
        assert "<svg" in chart("flat", [Line("a", [(1, 3.0)])])

    def test_no_points_no_chart(self) -> None:
        assert chart("empty", [Line("a", [])]) == ""

    def test_thinning_keeps_the_extremes(self) -> None:
        points = [(float(x), math.sin(x / 50)) for x in range(10_000)]
        points[7777] = (7777.0, 9.0)
        kept = thinned(points)
        assert len(kept) <= 500
        assert (7777.0, 9.0) in kept
        assert [x for x, _ in kept] == sorted(x for x, _ in kept)

    def test_the_average_is_free_of_its_start(self) -> None:
        assert smoothed([(1, 5.0), (2, 5.0)]) == [(1, pytest.approx(5.0)), (2, pytest.approx(5.0))]
        two = smoothed([(1, 0.0), (2, 1.0)])[1][1]
        assert two == pytest.approx(1 / 1.9)
