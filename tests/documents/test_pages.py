"""Pages are short, their links lead somewhere, and the paths they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents.pages import DOCS, LAB, PAGES, ROOT, USER_PAGES, anchors_of, inline_of, name_of, prose_of, text_of

MOST_WORDS = 2600
MOST_WORDS_OF_REFERENCE = 4000
"""Of the pages about the recipe, which are looked up, not read through."""
REFERENCE = {"recipe.md", "recipe.zh-CN.md"}
SOURCE = ROOT / "src" / "weitune"
CHINESE = re.compile(r"[\u3400-\u9fff]")


def test_there_are_pages() -> None:
    assert len(USER_PAGES) >= 15
    assert len(LAB) >= 8


@pytest.mark.parametrize("page", USER_PAGES, ids=name_of)
def test_no_page_is_long(page: Path) -> None:
    text = text_of(page)
    words = len(CHINESE.sub("", text).split()) + len(CHINESE.findall(text)) / 1.7  # characters to a word
    assert words <= (MOST_WORDS_OF_REFERENCE if page.name in REFERENCE else MOST_WORDS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_exists(page: Path) -> None:
    for named in inline_of(page):
        if not re.fullmatch(r"[a-z][a-z\d_.-]*(?:/[a-z\d_.-]*)+|[a-z\d_-]+\.py", named):
            continue  # capitals stand for something else: export/NAME
        first = named.partition("/")[0]
        inside = first in {"src", "tests", "bench", "docs"} or (SOURCE / first).is_dir() or named.endswith(".py")
        assert not inside or any((root / named).exists() for root in (ROOT, SOURCE)), named


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s#]+)", prose_of(page))
        if not re.match(r"[a-z]+:", target)
    }
    assert [name_of(page) for page in [*DOCS.glob("*.md"), *LAB] if page not in linked] == []


def test_contributing_names_every_room() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) ?\|$", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    named = {room: set(re.findall(r"`(\w+)`", folders)) for room, folders in rows}
    rooms = [folder for folder in SOURCE.iterdir() if folder.is_dir() and folder.name != "__pycache__"]
    assert named == {
        room.name: {inner.name for inner in room.iterdir() if inner.is_dir() and inner.name != "__pycache__"}
        for room in rooms
    }


def test_no_sentence_stands_on_two_pages() -> None:
    places: dict[str, set[str]] = {}
    for page in [page for page in USER_PAGES if page.name not in REFERENCE]:
        prose = re.sub(r"\s+", " ", re.sub(r"^\|.*$", "", prose_of(page), flags=re.MULTILINE))
        for sentence in re.split(r"(?<=[.!?:。！？]) *", prose):
            if len(sentence.split()) >= 9 or len(CHINESE.findall(sentence)) >= 25:
                places.setdefault(sentence.strip(" -"), set()).add(name_of(page))
    assert len(places) >= 300, "the pattern finds too little"
    assert {sentence: sorted(pages) for sentence, pages in places.items() if len(pages) > 1} == {}
