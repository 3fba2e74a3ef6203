"""docs/recipe.md and docs/recipe.schema.json say what the declaration says, and every key of it."""

import json
import re
from pathlib import Path

import pytest

from weitune.recipe import reference
from weitune.recipe.load import fields
from weitune.recipe.reference import PAGE, SCHEMA, json_schema, reference_markdown, write

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", [PAGE, SCHEMA])
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
