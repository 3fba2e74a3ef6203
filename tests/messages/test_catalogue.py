"""Every message that the source names is in the catalogue, with the values that it needs, and no other is."""

from __future__ import annotations

import ast
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import weitune
from weitune import errors
from weitune.messages import catalogue, say, texts

SOURCE = Path(weitune.__file__).parent
ENGLISH = SOURCE / "messages" / "en"
PACKAGES = {file.stem for file in ENGLISH.glob("*.json")}
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
PLACE = {"problems", "file", "row", "line", "column", "field", "reason", "turn", "param", "code", "headers"}
"""What is given beside the values: a problem's place, an error's problems, and what a server's error tells programs."""


class Use(NamedTuple):
    """A message named in the source, with the values that it is given."""

    where: str
    message_id: str
    values: frozenset[str]
    whole: bool


def uses() -> Iterator[Use]:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                named = next((a.value for a in node.args[:2] if is_id(a)), None)  # type: ignore[attr-defined]
                if named is not None:
                    keys = [keyword.arg for keyword in node.keywords]
                    where = f"{path.relative_to(SOURCE)}:{node.lineno}"
                    yield Use(where, named, frozenset(filter(None, keys)), None not in keys)


def is_id(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        return False
    package, _, name = node.value.partition(".")
    return package in PACKAGES and bool(name) and name in catalogue(package)


def fields_of(entry: str | dict[str, str]) -> set[str]:
    parts = [entry] if isinstance(entry, str) else entry.values()
    fields = {field for part in parts for _, field, _, _ in string.Formatter().parse(part) if field is not None}
    return {field.partition(".")[0] for field in fields}  # {record.loss} is an attribute of the value `record`


def ids() -> dict[str, str | dict[str, str]]:
    files = sorted(ENGLISH.glob("*.json"))
    return {f"{file.stem}.{name}": entry for file in files for name, entry in json.loads(file.read_text()).items()}


def test_every_message_of_the_catalogue_is_used() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    assert not [name for name in ids() if f'"{name}"' not in text]


def test_a_message_gets_the_values_that_its_texts_have_fields_for() -> None:
    entries = ids()
    for use in uses():
        needed = fields_of(entries[use.message_id])
        assert not use.whole or needed - PLACE <= use.values, use
        assert use.values - PLACE <= needed | {"default"}, use


def test_a_name_that_looks_like_an_id_is_one() -> None:
    """A misspelt id would raise KeyError in front of a user."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in ERRORS - {"MissingExtraError"} | {"say", "texts", "data_problem", "Refusal"}:
                    assert is_id(node.args[0]), f"{path.relative_to(SOURCE)}:{node.lineno} {node.args[0].value}"


def test_the_parts_of_an_entry() -> None:
    for name, entry in ids().items():
        if not isinstance(entry, str):
            assert entry.keys() in (
                {"message"},
                {"message", "fix"},
                {"one", "other"},
                {"kind", "expected", "found", "fix"},
            ), name


def test_values_are_filled_in_and_unknown_ids_raise() -> None:
    assert say("data.problems.title", count=1) == "the data have a problem"
    assert say("data.problems.title", count=1234) == "the data have 1,234 problems"
    assert texts("errors.missing_extra", package="p", extra="e")["fix"].endswith("'weitune[e]'")
    with pytest.raises(KeyError):
        say("data.problems.no_such_message")
