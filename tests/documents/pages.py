"""The pages of the documents, and the parts of them that tests look at."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LAB = sorted((DOCS / "lab").glob("*.md"))
"""Pages that keep every measurement; no limit holds for them."""
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *LAB])
USER_PAGES = [page for page in PAGES if page not in LAB and page.name not in {"decisions.md", "CHANGELOG.md"}]
TRANSLATED = [(page.with_name(page.name.replace(".zh-CN", "")), page) for page in PAGES if ".zh-CN" in page.name]
"""Each English page with its Chinese one."""


def name_of(page: Path) -> str:
    """Return the page's path within the repository, for the names of tests."""
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    """Return the page as it is written."""
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """Return the page without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?:(?<=\n\n)|\A)(?: {4}.*\n+)+", "", text)


def code_of(page: Path) -> list[str]:
    """Return the blocks of code, indented or fenced, without indentation and fences."""
    text = text_of(page)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = [
        re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip("\n")
        for block in re.findall(r"(?:(?<=\n\n)|\A)(?: {4}.*(?:\n+|\Z))+", rest)
    ]
    return [*fenced, *indented]


def inline_of(page: Path) -> list[str]:
    """Return what stands between single backticks."""
    return [found.replace("\\|", "|") for found in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose_of(page))]


def headings_of(page: Path) -> list[tuple[int, str]]:
    """Return the level and the text of every heading."""
    found = re.findall(
        r"^(#+) (.+)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return [(len(marks), text.strip()) for marks, text in found]


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the page's headings."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for _, text in headings_of(page)}
