"""What the pages for readers of the self-llm tutorial name exists: keys, values, paths, and the tutorial's preset."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.documents.pages import DOCS, ROOT, inline_of, name_of
from weitune.recipe.load import build_recipe, fields, load_recipe

PAGES = [DOCS / "from-the-tutorial.md", DOCS / "from-the-tutorial.zh-CN.md"]
KEYS = {key for key, _ in fields()}
PATH = re.compile(r"(?:src|tests)/[\w./-]+|constraints\.txt")


def keys_named(page: Path) -> dict[str, str | None]:
    """Return every key that stands between backticks, with its value if one stands there too."""
    named = [re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)?)(?:: (.+))?", text) for text in inline_of(page)]
    found = [(match[1], match[2]) for match in named if match and ("." in match[1] or match[2])]
    groups = {key.partition(".")[0] for key in KEYS}
    return {key: value for key, value in found if key in KEYS or key.partition(".")[0] in groups}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_key_exists(page: Path) -> None:
    named = keys_named(page)
    assert len(named) >= 25
    assert set(named) <= KEYS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_value_is_one_that_the_key_takes(page: Path) -> None:
    for key, value in keys_named(page).items():
        if value is not None and key != "tokens.template_args":
            group, _, name = key.rpartition(".")
            entry = {name: yaml.safe_load(value)}
            build_recipe({"model": "any", "data": "any.json", **({group: entry} if group else entry)})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_exists(page: Path) -> None:
    named = [path for path in inline_of(page) if PATH.fullmatch(path)]
    assert len(set(named)) >= 15
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_both_pages_name_the_same() -> None:
    english, chinese = ([text for text in inline_of(page) if PATH.fullmatch(text) or text in KEYS] for page in PAGES)
    assert english == chinese


def test_the_preset_is_what_the_table_says() -> None:
    recipe = load_recipe("tutorial")
    for key, value in keys_named(PAGES[0]).items():
        if value is not None and key.startswith("train.") and key != "train.storage":
            assert getattr(recipe.train, key.partition(".")[2]) == yaml.safe_load(value), key
