"""Pages as a browser shows them: nothing runs off the side, everything can be read, and paper has all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import chromium, sandbox_arguments
from tests.report.pages import made_run
from tests.report.test_verdict import evaluated
from weitune.data.show.preview import Part, PreviewItem
from weitune.evaluate.intervals import Change
from weitune.report.comparison import compare
from weitune.report.data_page import data_page
from weitune.report.run_record import RunRecord
from weitune.report.run_report import run_report, write_report

pytestmark = pytest.mark.slow
WIDTHS = (1280, 390, 320)
LOCALES, OTHER = {"en": "en-GB", "zh": "zh-CN"}, {"en": "zh", "zh": "en"}
LEAST_CONTRAST, LEAST_TICK = 4.5, 11
MEASURE = """() => {
  const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = text => rgb(text).map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, k) => sum + c * [.2126, .7152, .0722][k], 0);
  const contrast = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
  const paper = getComputedStyle(document.body).backgroundColor, page = document.documentElement;
  const read = [...document.querySelectorAll('.tick')].filter(tick => tick.getClientRects().length);
  const ticks = read.map(tick => {
    const style = getComputedStyle(tick), place = tick.getBoundingClientRect();
    const around = tick.closest('figure').getBoundingClientRect();
    return {size: parseFloat(style.fontSize) * tick.getScreenCTM().d, contrast: contrast(style.fill, paper),
      inside: place.left >= around.left - 1 && place.right <= around.right + 1 && place.bottom <= around.bottom + 1};
  });
  const plots = [...document.querySelectorAll('.plot > svg')].map(plot => {
    const place = plot.getBoundingClientRect();
    const middles = [...plot.querySelectorAll('text[text-anchor=middle]')].map(tick => {
      const at = tick.getBoundingClientRect(); return (at.left + at.right) / 2 - place.left });
    const curves = [...plot.querySelectorAll('path')].map(curve => curve.getBoundingClientRect());
    return {axes: plot.querySelectorAll('.axis').length, first: Math.min(...middles),
      inside: curves.every(at => at.left >= place.left - 2 && at.right <= place.right + 2
        && at.top >= place.top - 2 && at.bottom <= place.bottom + 2)};
  });
  const heights = [...document.querySelectorAll('.tile')].map(tile => Math.round(tile.offsetHeight));
  return {beyond: page.scrollWidth - page.clientWidth, ticks, plots, heights: [...new Set(heights)].length,
    findings: document.querySelector('.findings')?.getBoundingClientRect().bottom ?? 0};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=sandbox_arguments())
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a report, a comparison and a page of data."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [
        made_run(folder / name, **made) for name, made in (("a", {}), ("b", {}), ("c", {"losses": (5.0, 3.5, 3.1)}))
    ]
    records = [RunRecord.read(run) for run in runs]
    for run in runs:
        write_report(run)
    shown = replace(records[0], evaluation=evaluated(0.5, change=Change(-0.3, -0.4, -0.2)))
    chinese = "你是谁？" * 30
    shared = Part("<|im_start|>", "control", 1), Part("system\nYou are the emperor's favourite.", "prompt", 9)
    items = [
        PreviewItem(
            f"rows.json row {k}", (*shared, Part(said, "prompt", 3), Part("Hm. " * k, "learned", k, 1.0)), ("cut",)
        )
        for k, said in enumerate(["hello", chinese, "x" * 500], 1)
    ]
    (folder / "report.html").write_text(run_report(shown), encoding="utf-8")
    (folder / "comparison.html").write_text(compare(records, folder), encoding="utf-8")
    (folder / "data.html").write_text(data_page("rows.json for a model", items, []), encoding="utf-8")
    return folder


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["report", "comparison", "data"])
def test_every_width_and_both_colours(name: str, language: str, browser: Any, folder: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for width in WIDTHS:
        for colours in ("light", "dark"):
            viewport = {"width": width, "height": 800}
            page = browser.new_page(viewport=viewport, color_scheme=colours, locale=LOCALES[language])
            complaints: list[str] = []
            page.on("console", lambda said, complaints=complaints: complaints.append(said.text))
            page.goto((folder / f"{name}.html").as_uri())
            where, found = (name, language, width, colours), page.evaluate(MEASURE)
            assert page.evaluate("document.documentElement.lang") == language, where
            assert page.locator(f".{OTHER[language]}:visible").count() == 0, where
            assert not complaints, where  # the policy refuses nothing of ours
            assert found["beyond"] <= 0, where
            assert len(found["plots"]) == {"report": 3, "comparison": 4, "data": 0}[name], where
            for tick in found["ticks"]:
                assert tick["size"] >= LEAST_TICK, where
                assert tick["contrast"] >= LEAST_CONTRAST, where
                assert tick["inside"], where
            for plot in found["plots"]:
                assert plot["axes"] == 2, where
                assert abs(plot["first"]) < 1, (where, plot)
                assert plot["inside"], (where, plot)
            assert found["heights"] <= 1, where
            if width == 1280:
                assert found["findings"] <= 800, where  # the whole verdict is on the first screen
            violations = Axe().run(page).response["violations"]
            assert not violations, (where, json.dumps(violations)[:2000])
            page.close()


def test_a_button_copies_its_command(browser: Any, folder: Path) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((folder / "report.html").as_uri())
    button = page.locator("button.copy").first
    command = page.locator(".command pre").first.inner_text()
    button.click()
    page.locator("button.copied").get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == command
    context.close()


def test_links_lead_from_a_comparison_to_the_reports(browser: Any, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "comparison.html").as_uri())
    page.get_by_role("link", name="c", exact=True).click()
    page.get_by_role("heading", name="Run c").wait_for()
    page.get_by_role("link", name="b", exact=True).click()
    page.get_by_role("heading", name="Run b").wait_for()
    page.close()


def test_paper_has_what_is_folded(browser: Any, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "report.html").as_uri())
    folded = page.locator("details pre, details td")
    assert not any(each.is_visible() for each in folded.all())
    page.emulate_media(media="print")
    assert folded.count() > 3
    assert all(each.bounding_box()["height"] > 0 for each in folded.all() if each.inner_text().strip())
    assert not page.locator("button.copy").first.is_visible()
    page.close()


def test_the_filter_of_the_data_page(browser: Any, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "data.html").as_uri())
    assert page.locator("text=You are the emperor's favourite.").count() == 1
    assert page.locator("article:visible").count() == 3
    page.locator("input[name=text]").fill("hello")
    assert page.locator("article:visible").count() == 1
    assert page.locator("output").inner_text() == "1 of 3 shown"
    page.locator("label[for=read-zh]").click()
    assert page.locator("output").inner_text() == "显示 3 条中的 1 条"
    assert page.locator("option").all_inner_texts() == ["全部数据", "截断 (3)"]
    page.close()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_reader_chooses_the_language(scripts: bool, browser: Any, folder: Path) -> None:
    """Without a script, too; with one, the page that a link leads to is in that language, and so is its title."""
    context = browser.new_context(java_script_enabled=scripts, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto((folder / "comparison.html").as_uri())
    heading = page.locator("h1")
    assert heading.inner_text() == "Runs compared"
    page.locator("label[for=read-zh]").click()
    assert heading.inner_text() == "运行比较"
    assert page.locator(".en:visible").count() == 0
    page.get_by_role("radio", name="中文").press("ArrowLeft")
    assert heading.inner_text() == "Runs compared"
    page.locator("label[for=read-zh]").click()
    if scripts:
        assert page.title() == "运行比较"
        page.get_by_role("link", name="c", exact=True).click()
        assert heading.inner_text() == "运行 c"
    context.close()


def test_the_heads_of_cells_on_a_phone_are_in_the_language(browser: Any, folder: Path) -> None:
    head = "td => getComputedStyle(td, '::before').content"
    for language, expected in (("en", '"after"'), ("zh", '"训练后"')):
        page = browser.new_page(viewport={"width": 390, "height": 800}, locale=LOCALES[language])
        page.goto((folder / "report.html").as_uri())
        assert page.locator("#answers td:last-child").first.evaluate(head) == expected
        page.close()
