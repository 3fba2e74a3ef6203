"""Runs side by side: only what differs, the results, and one page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.pages import EVIL, Page, made_run
from weitune import cli
from weitune.evaluate.evaluation import EvaluatedRows
from weitune.recipe.preference import Preference
from weitune.report.comparison import compare, differences, results
from weitune.report.run_record import RunRecord
from weitune.report.run_report import write_report


def test_only_what_differs_is_shown(tmp_path: Path) -> None:
    first = made_run(tmp_path / "a", losses=(5.0, 4.0))
    second = made_run(tmp_path / "b", losses=(5.0, 3.5), train={"learning_rate": 5e-4})
    records = [RunRecord.read(first), RunRecord.read(second)]
    rows = {row[0]: row[1:] for row in differences(records)}
    assert rows["train.learning_rate"] == ["0.0001", "0.0005"]
    assert set(rows) == {"train.learning_rate", "model"}  # each has its own model folder
    found = {row[0]: row[1:] for row in results(records)}
    assert found["validation loss, best"] == ["4.0000", "3.5000"]


def test_brackets_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(made_run(tmp_path / name, system=system)) for name, system in (("a", "[/INST]"), ("b", "[bold]x"))]
    assert cli.main(["compare", *runs]) == 0
    shown = capsys.readouterr().out
    assert "[/INST]" in shown
    assert "[bold]x" in shown


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(made_run(tmp_path / name)) for name in "ab"]
    assert cli.main(["compare", *runs, "-o", str(tmp_path / "page.html")]) == 0
    assert "validation loss, best" in capsys.readouterr().out
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.tags.count("figure") == 4
    assert page.tags.count("script") == 1  # that of the languages


def test_equal_runs_are_told_apart_and_the_best_is_named(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "b"), made_run(tmp_path / "c", losses=(5.0, 3.0, 2.0))]
    for run in runs[:2]:
        write_report(run)
    html = compare([RunRecord.read(run) for run in runs], tmp_path / "pages")
    texts = "".join(Page(html).texts)
    assert "c has the lowest validation loss: 2.0000." in texts
    assert "one above the other: a, b." in texts
    assert all(html.count(f'<svg class="line c{k} d{k}"') == 4 for k in range(3))  # a legend for every chart
    assert 'href="../a/report.html"' in html
    assert "../c/report.html" not in html  # it has none


def test_losses_of_other_rows_or_methods_do_not_tell_which_run_is_best(tmp_path: Path) -> None:
    plain = RunRecord.read(made_run(tmp_path / "a"))
    better = RunRecord.read(made_run(tmp_path / "b", losses=(5.0, 3.0, 2.0)))
    other = replace(better, environment={"basis": {"validation": {"contents": "of other rows"}}})
    paired = replace(better, recipe=better.recipe.model_copy(update={"preference": Preference(method="dpo")}))
    assert "b has the lowest validation loss" in compare([plain, better], tmp_path)
    for record in (other, paired):
        html = compare([plain, record], tmp_path)
        assert "has the lowest" not in html
        assert "of other rows or of another method" in html


def test_a_base_that_runs_have_in_common_stands_there_once(tmp_path: Path) -> None:
    records = [RunRecord.read(made_run(tmp_path / name)) for name in "ab"]
    page = Page(compare(records, tmp_path), "zh")
    assert [text for text in page.texts if text == "基座" or text.startswith(("a: ", "b: "))] == [
        "基座", f"a: {EVIL}", f"b: {EVIL}"
    ]  # fmt: skip


def test_figures_of_other_rows_stand_in_tables_of_their_own(tmp_path: Path) -> None:
    one, two = (RunRecord.read(made_run(tmp_path / name)) for name in "ab")
    assert one.evaluation is not None
    other = replace(two, evaluation=replace(one.evaluation, rows=EvaluatedRows("easy.json", 5, 5)))
    together, apart = ("".join(Page(compare([one, each], tmp_path)).texts) for each in (two, other))
    assert (together.count("Evaluated on"), apart.count("Evaluated on")) == (1, 2)
    assert "Evaluated on easy.json: 5 examples, 5 questions." in apart


@pytest.mark.parametrize("arguments", [["a"], ["a", "nowhere"]])
def test_wrong_input(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_run(tmp_path / "a")
    assert cli.main(["compare", *(str(tmp_path / name) for name in arguments)]) == 2
    assert capsys.readouterr().err


def test_a_page_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(made_run(tmp_path / name)) for name in "ab"]
    assert cli.main(["compare", *runs, "-o", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
