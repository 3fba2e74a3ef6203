"""The pages of models have one row for each family that the tests train, and the same rows in both languages."""

from __future__ import annotations

import re

from tests.documents.pages import DOCS, text_of
from tests.export.formats.gguf_families import FAMILIES as TRIED_IN_LLAMA_CPP
from tests.families import FAST, GROUPS


def rows_of(page: str, group: str) -> list[str]:
    section = text_of(DOCS / page).partition(f"<!-- {group} -->")[2].partition(f"<!-- /{group} -->")[0]
    return [line for line in section.splitlines() if line.startswith("| `")]


def test_every_family_has_its_row() -> None:
    for group, families in GROUPS.items():
        rows = rows_of("models.md", group)
        assert [re.findall("`([^`]+)`", row)[0] for row in rows] == list(families)
        assert rows_of("models.zh-CN.md", group) == rows


def test_the_page_calls_fast_what_the_tests_hold_to_it() -> None:
    for group, families in GROUPS.items():
        fast = [re.findall("`([^`]+)`", row)[0] for row in rows_of("models.md", group) if row.split(" | ")[5] == "✓"]
        assert fast == [name for name in families if name in FAST]


def test_the_page_gives_gguf_to_the_families_that_llama_cpp_was_tried_with() -> None:
    rows = [row for group in GROUPS for row in rows_of("models.md", group)]
    tried = {re.findall("`([^`]+)`", row)[0] for row in rows if row.split(" | ")[7] == "✓"}
    assert tried == set(TRIED_IN_LLAMA_CPP)
