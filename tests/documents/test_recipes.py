"""What the documents say about recipes is true of the declaration."""

import re
from pathlib import Path

import pytest
import yaml

from weitune.recipe.load import build_recipe, fields, preset_names, section_of
from weitune.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("tutorial*.md"), ROOT / "docs" / "how-it-works.md"])
KEYS = {key for key, _ in fields()}
GROUPS = {name for name, info in Recipe.model_fields.items() if section_of(info)}


def text(page):
    return page.read_text(encoding="utf-8")


def indented_blocks(page):
    """Yield the code blocks of a page without their indentation."""
    for block in re.findall(r"(?:^(?: {4}.*)?\n)+", text(page), re.MULTILINE):
        if block.strip():
            yield re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip()


def test_there_are_pages():
    assert len(PAGES) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dotted_key_exists(page):
    named = set(re.findall(rf"\b((?:{'|'.join(sorted(GROUPS))})\.[a-z_]+)\b", text(page)))
    assert named, "the pattern finds nothing"
    assert named <= KEYS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_is_valid(page):
    recipes = [block.split("\n\n")[0] for block in indented_blocks(page) if block.startswith("model:")]
    assert recipes or not page.name.startswith("tutorial"), "the pattern finds nothing"
    for recipe in recipes:
        build_recipe(yaml.safe_load(recipe))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_named_in_a_command_is_a_preset_or_a_file(page):
    named = re.findall(r"^ +weitune train ([\w.-]+)", text(page), re.MULTILINE)
    assert all(name in preset_names() or name.startswith("--") or name.endswith(".yaml") for name in named), named


def test_the_tables_in_the_readme_give_the_defaults():
    defaults = {key: info.default for key, info in fields()}
    for page in ROOT.glob("README*.md"):
        rows = re.findall(r"^\| (`[a-z_.]+`(?:[,、] ?`[a-z_.]+`)*) \| ([^|]+) \|", text(page), re.MULTILINE)
        shown = {}
        for keys, values in rows:
            names = re.findall(r"`([a-z_.]+)`", keys)
            shown.update(zip(names, re.split(r"[,、] ?", values.strip()), strict=len(names) > 1))
        numbers = {key: value for key, value in shown.items() if re.fullmatch(r"[\d.e-]+", value)}
        assert len(numbers) >= 5
        assert {key: float(value) for key, value in numbers.items()} == {key: defaults[key] for key in numbers}
