"""Pages link to each other by paths that stay right when a folder of runs is moved, and to nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.report.pages import made_run
from weitune.cli import main
from weitune.report.links import address, comparisons, note_comparison, siblings
from weitune.report.run_report import write_report
from weitune.run.names import COMPARISONS


def links(page: Path) -> list[str]:
    return re.findall('href="([^"#]+)"', page.read_text(encoding="utf-8"))


def test_a_comparison_and_its_reports_link_to_each_other_and_may_be_moved(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "runs" / name) for name in ("one run", "b#1")]
    for run in runs:
        write_report(run)
    page = tmp_path / "runs" / "all of them.html"
    assert main(["compare", *map(str, runs), "-o", str(page)]) == 0
    assert links(page) == ["one%20run/report.html", "b%231/report.html"]
    assert links(runs[0] / "report.html") == ["../all%20of%20them.html", "../b%231/report.html"]
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    run = tmp_path / "elsewhere" / "one run"
    write_report(run)
    assert links(run / "report.html")[0] == "../all%20of%20them.html"
    (tmp_path / "elsewhere" / page.name).unlink()
    write_report(run)
    assert links(run / "report.html") == ["../b%231/report.html"]


def test_a_run_without_a_report_gets_none(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name) for name in "ab"]
    assert main(["compare", *map(str, runs), "-o", str(tmp_path / "page.html")]) == 0
    assert comparisons(runs[0]) == [runs[0] / ".." / "page.html"]
    assert not (runs[0] / "report.html").exists()


@pytest.mark.parametrize(
    "name",
    ["../../outside.html", "javascript:alert(1).html", "/outside.html", "../notes.txt", "../none.html", "a\0.html", 3],
)
def test_a_folder_cannot_make_its_report_link_elsewhere(name: object, tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs" / "a")
    for there in (tmp_path / "outside.html", tmp_path / "runs" / "notes.txt"):
        there.write_text("x", encoding="utf-8")
    (run / COMPARISONS).write_text(json.dumps({"pages": [name]}), encoding="utf-8")
    assert links(write_report(run)) == []


def test_a_comparison_that_lies_elsewhere_is_not_noted(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs" / "a")
    assert not note_comparison(run, tmp_path / "page.html")
    assert not (run / COMPARISONS).exists()


def test_the_newest_comparison_is_first_and_none_is_there_twice(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a")
    pages = [tmp_path / f"{name}.html" for name in "xyx"]
    for page in pages:
        page.write_text("x", encoding="utf-8")
        assert note_comparison(run, page)
    assert [page.name for page in comparisons(run)] == ["x.html", "y.html"]


def test_an_address_has_no_scheme(tmp_path: Path) -> None:
    assert address(tmp_path / "javascript:x.html", tmp_path) == "javascript%3Ax.html"


def test_a_folder_with_a_report_that_is_no_run_is_not_named(tmp_path: Path) -> None:
    """As `weitune eval --output` makes one."""
    run, other = (made_run(tmp_path / name) for name in ("a", "b"))
    for each in (run, other):
        write_report(each)
    shutil.copytree(run, tmp_path / "a-eval")
    (tmp_path / "a-eval" / "recipe.yaml").unlink()
    assert siblings(other) == ["a"]
