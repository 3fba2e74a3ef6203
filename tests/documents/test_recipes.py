"""What the pages say about recipes is true of the declaration: keys, recipes, presets, defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.documents.pages import PAGES, ROOT, code_of, inline_of, name_of, text_of
from weitune.recipe.load import build_recipe, fields, preset_names, section_of
from weitune.recipe.schema import Recipe

KEYS = {key for key, _ in fields()}
GROUPS = {name for name, info in Recipe.model_fields.items() if section_of(info)}
TOP = set(Recipe.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_dotted_key_exists(page: Path) -> None:
    named = set(re.findall(rf"(?<![\w/.])((?:{'|'.join(sorted(GROUPS))})\.[a-z_]+)\b(?![./*-])", text_of(page)))
    assert {key for key in named if not key.endswith((".py", ".md", ".jsonl"))} <= KEYS


def recipes_of(page: Path) -> list[str]:
    """Return the blocks of a page that are YAML of a recipe, whole or in part, without a command that follows."""
    blocks = [re.split(r"\n\n(?=weitune )", block)[0] for block in code_of(page)]
    return [block for block in blocks if re.match(rf"(?:#.*\n)*(?:{'|'.join(sorted(TOP))}):(?:\s|$)", block)]


def test_there_are_recipes() -> None:
    assert {name_of(page) for page in PAGES if recipes_of(page)} >= {
        "docs/tutorial.md", "docs/tutorial.zh-CN.md", "docs/data.md", "docs/evaluation.md", "docs/real-run.md"
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_recipe_is_valid(page: Path) -> None:
    for text in recipes_of(page):
        alternatives = text.splitlines() if len(set(re.findall(r"^\w+:", text, re.MULTILINE))) == 1 else [text]
        for recipe in alternatives if "\n " not in text else [text]:  # two lines with one key are two examples
            build_recipe({"model": "any", "data": "any.json", **yaml.safe_load(recipe)})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_within_a_sentence_is_valid(page: Path) -> None:
    for text in inline_of(page):
        match = re.fullmatch(r"([a-z_]+)(?:\.([a-z_]+))?: ([^…]+)", text)
        if match and (f"{match[1]}.{match[2]}" in KEYS or (match[2] is None and match[1] in TOP)):
            value = yaml.safe_load(match[3])
            tree = {match[1]: {match[2]: value} if match[2] else value}
            if match[1] == "lora" and match[2] == "init" and value == "loftq":
                tree["train"] = {"storage": "nf4"}
            build_recipe({"model": "any", "data": "any.json", "validation": 0.1, **tree})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_recipe_named_in_a_command_is_a_preset_or_a_file(page: Path) -> None:
    named = re.findall(r"^ +weitune (?:train|plan) ([\w./-]+)", text_of(page), re.MULTILINE)
    assert all(name in preset_names() or name.startswith("--") or name.endswith(".yaml") for name in named), named


def test_the_tables_in_the_readme_give_the_defaults() -> None:
    defaults = {key: info.default for key, info in fields()}
    for page in ROOT.glob("README*.md"):
        rows = re.findall(r"^\| (`[a-z_.]+`(?:[,、] ?`[a-z_.]+`)*) \| ([^|]+) \|", text_of(page), re.MULTILINE)
        shown: dict[str, str] = {}
        for keys, values in rows:
            names = re.findall(r"`([a-z_.]+)`", keys)
            shown.update(zip(names, re.split(r"[,、] ?", values.strip()), strict=len(names) > 1))
        numbers = {key: value for key, value in shown.items() if re.fullmatch(r"[\d.e-]+", value)}
        assert len(numbers) >= 5
        assert {key: float(value) for key, value in numbers.items()} == {key: defaults[key] for key in numbers}
