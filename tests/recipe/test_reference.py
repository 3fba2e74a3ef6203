"""The pages about the recipe and its JSON schema say what the declaration says, and every key of it."""

import json
import re
from pathlib import Path

import pytest

from weitune.messages import catalogue
from weitune.messages.language import speaking
from weitune.recipe import reference
from weitune.recipe.load import fields
from weitune.recipe.reference import PAGES, SCHEMA, json_schema, reference_markdown, write

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", [*PAGES.values(), SCHEMA])
def test_the_docs_have_not_drifted(name, tmp_path):
    write(tmp_path)
    assert (DOCS / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8"), (
        "run: python -m weitune.recipe.reference"
    )


def test_every_key_has_one_row_with_a_type_and_a_meaning():
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+?) \| (.+) \|$", reference_markdown(), re.MULTILINE)
    assert sorted(key for key, *_ in rows) == sorted(key for key, _ in fields())
    for key, type_, default, meaning in rows:
        assert type_.strip(), key
        assert default.strip(), key
        assert meaning.endswith((".", "not.")), f"{key}: the meaning is no sentence"


def test_the_chinese_page_is_chinese():
    with speaking("zh"):
        page = reference_markdown()
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    assert [key for key, *_ in rows] == re.findall(r"^\| `([\w.]+)`", reference_markdown(), re.MULTILINE)
    for key, type_, default, meaning in rows:
        for cell in (type_, default):
            assert not re.search("[a-z]{2}", re.sub("`[^`]*`|true 或 false", "", cell)), (key, cell)
        assert meaning == str(catalogue("keys", "zh")[key]).replace("|", "\\|"), key
        assert meaning.endswith("。"), key
    assert "| `train.max_steps` | 整数，至少 1；或无 | 无 |" in page
    assert "| `hub` | `huggingface` 或 `modelscope` | `huggingface` |" in page
    assert "| `revision` | 字符串或无 | 无 |" in page
    assert "| `lora` | 一组键或 `none` | 见下面那一组 |" in page


def test_every_group_of_keys_is_told_in_chinese():
    groups = {prefix.removesuffix(".") for prefix, _ in reference._groups(reference.Recipe.model_json_schema())} - {""}
    assert set(catalogue("groups", "zh")) == groups


def test_a_new_key_appears(monkeypatch):
    class Longer(reference.Recipe):
        flavour: bool = False
        """Whether to add salt."""

    monkeypatch.setattr(reference, "Recipe", Longer)
    assert "| `flavour` | true or false | `False` | Whether to add salt. |" in reference_markdown()
    assert json_schema()["properties"]["flavour"]["description"] == "Whether to add salt."


def test_types_and_ranges_in_words():
    page = reference_markdown()
    assert "| `train.max_steps` | whole number, at least 1; or none | none |" in page
    assert "| `lora.dropout` | number, at least 0, less than 1 | `0.1` |" in page
    assert "| `tokens.truncation` | `drop`, `cut` or `error` | `drop` |" in page
    assert "less than 2^63" in page


def test_the_schema_refuses_unknown_keys_in_every_group():
    schema = json_schema()
    for group in [schema, *schema["$defs"].values()]:
        assert group["additionalProperties"] is False


def test_the_schema_takes_one_file_or_several():
    kinds = [branch["type"] for branch in json_schema()["properties"]["data"]["anyOf"]]
    assert kinds == ["string", "array"]


def test_the_schema_is_json():
    assert json.loads(json.dumps(json_schema())) == json_schema()
