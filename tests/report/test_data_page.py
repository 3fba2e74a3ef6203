"""The page of data shows what all rows begin with once, and takes no text for markup."""

from __future__ import annotations

from tests.report.pages import EVIL, Page
from weitune.data.show.preview import Part, PreviewItem
from weitune.report.data_page import data_page, shared_beginning

SYSTEM = (Part("<|im_start|>", "control", 1), Part("system\nYou are a lighthouse keeper.", "prompt", 9))


def item(said: str, *beginning: Part) -> PreviewItem:
    return PreviewItem("row", (*beginning, Part(said, "prompt", 2), Part("Aye.", "learned", 2, 1.0)))


def test_a_shared_system_prompt_stands_on_the_page_once() -> None:
    items = [item("hello", *SYSTEM), item("who are you", *SYSTEM), PreviewItem("faulty", ())]
    assert shared_beginning(items) == SYSTEM
    html = data_page("title", items, ["a fact"])
    assert html.count("You are a lighthouse keeper.") == 1
    assert html.count("beginning as above") == html.count("开头同上") == 2
    assert html.count("<mark>Aye.</mark>") == 2


def test_few_tokens_or_one_row_or_another_system_prompt_are_no_shared_beginning() -> None:
    assert shared_beginning([item("hello", *SYSTEM)]) == ()
    assert shared_beginning([item("hello", SYSTEM[0]), item("bye", SYSTEM[0])]) == ()
    assert shared_beginning([item("hello", *SYSTEM), item("hello")]) == ()


def test_no_text_becomes_markup() -> None:
    page = Page(data_page(EVIL, [PreviewItem(EVIL, (Part(EVIL, "learned", 1, 1.0),), (EVIL,))], [EVIL]))
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert sum(EVIL in text for text in page.texts) >= 5
    assert any("default-src 'none'" in value for name, value in page.attributes if name == "content")
