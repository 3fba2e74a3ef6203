"""A page and its Chinese twin have the same headings in the same order, the same commands and the same tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents.pages import TRANSLATED, code_of, headings_of, inline_of, name_of, prose_of
from weitune.recipe.load import fields

KEYS = {key for key, _ in fields()}
CHINESE = re.compile(r"[一-鿿]")
PAIRS = pytest.mark.parametrize(("english", "chinese"), TRANSLATED, ids=name_of)


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of each line of the blocks of code, without comments and what is put in one's own words."""
    lines = [re.sub(r"(?:\s#|(?<=^)#).*", "", line) for block in code_of(page) for line in block.splitlines()]
    kept = [line for line in lines if re.match(r"\s*(?:weitune|python|pip|make|export|torchrun|CMAKE_ARGS) ?", line)]
    quoted = [re.sub(r"'[^']*'", "''", line) for line in kept]
    return [["…" if CHINESE.search(word) or word.isupper() or "USER/" in word else word for word in line.split()]
            for line in quoted]  # fmt: skip


def test_there_are_pages() -> None:
    assert len(TRANSLATED) >= 7


@PAIRS
def test_headings(english: Path, chinese: Path) -> None:
    ours, theirs = headings_of(english), headings_of(chinese)
    assert [level for level, _ in ours] == [level for level, _ in theirs]
    for (_, one), (_, other) in zip(ours, theirs, strict=True):
        assert re.findall(r"`[^`]+`|^\d", one) == re.findall(r"`[^`]+`|^\d", other)


@PAIRS
def test_commands(english: Path, chinese: Path) -> None:
    assert commands_of(english) == commands_of(chinese)


@PAIRS
def test_tables_have_as_many_rows_and_columns(english: Path, chinese: Path) -> None:
    def shape(page: Path) -> list[int]:
        return [line.replace("\\|", "").count("|") for line in prose_of(page).splitlines() if line.startswith("|")]

    assert shape(english) == shape(chinese)


@PAIRS
def test_keys_and_options(english: Path, chinese: Path) -> None:
    def named(page: Path) -> set[str]:
        return {text.split()[0] for text in inline_of(page) if (text in KEYS and "." in text) or text.startswith("--")}

    assert named(english) == named(chinese)


@PAIRS
def test_figures(english: Path, chinese: Path) -> None:
    def figures(page: Path) -> set[str]:
        return set(re.findall(r"\d+\.\d+(?! ?[\d亿万])|\d{1,3}(?:,\d{3})+", prose_of(page)))

    assert figures(english) == figures(chinese)


@PAIRS
def test_each_links_to_the_other(english: Path, chinese: Path) -> None:
    assert f"]({chinese.name})" in prose_of(english)
    assert f"]({english.name})" in prose_of(chinese)
