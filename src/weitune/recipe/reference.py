"""Write the recipe's reference from its declaration: a JSON schema for editors, a Markdown page for people.

    schema.py ── pydantic ──▶ json_schema() ──▶ reference_markdown()

    python -m weitune.recipe.reference [FOLDER]      # rewrites the files in FOLDER, or in docs

Name, type, range, default and meaning of each key come from :mod:`.schema`; on the Chinese page, the meanings from
``keys.json`` and ``groups.json`` of the catalogue.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weitune.messages import catalogue, say
from weitune.messages.language import Language, language, speaking
from weitune.recipe.load import preset_names
from weitune.recipe.schema import Recipe

PAGES: dict[Language, str] = {"en": "recipe.md", "zh": "recipe.zh-CN.md"}
SCHEMA = "recipe.schema.json"
_LIMITS = {
    "minimum": "recipe.reference.at_least",
    "exclusiveMinimum": "recipe.reference.greater",
    "maximum": "recipe.reference.at_most",
    "exclusiveMaximum": "recipe.reference.less",
}
_CHINESE = "[\u4e00-\u9fff]"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe file."""
    schema = Recipe.model_json_schema()
    for _, group in _groups(schema):
        group["properties"] = {name: _also_one(spec) for name, spec in group["properties"].items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def reference_markdown() -> str:
    """Return the text of the reference page in the language of messages: one table for each group of keys."""
    presets = say("recipe.reference.comma").join(f"`{name}`" for name in preset_names())
    parts = [say("recipe.reference.introduction", presets=presets, schema=SCHEMA)]
    for prefix, group in _groups(Recipe.model_json_schema()):
        name = prefix.removesuffix(".")
        title = f"`{name}`\n\n{_about(name, group)}" if prefix else say("recipe.reference.top_level")
        parts.append(f"\n## {title}\n\n{_table(prefix, group)}")
    return "".join(parts)


def write(folder: Path) -> None:
    """Write the pages and the schema into ``folder``."""
    files = {SCHEMA: json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"}
    for here, name in PAGES.items():
        with speaking(here):
            files[name] = reference_markdown()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _about(group: str, spec: Mapping[str, Any]) -> str:
    """Return what a group of keys is for."""
    told = catalogue("groups", "zh").get(group) if language() == "zh" else None
    return str(told or spec["description"])


def _meaning(key: str, spec: Mapping[str, Any]) -> str:
    told = catalogue("keys", "zh").get(key) if language() == "zh" else None
    return " ".join(str(told or spec["description"]).split())


def _groups(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted prefix, its schema) of the recipe and of every group of keys in it."""
    waiting = [("", schema)]
    while waiting:
        prefix, group = waiting.pop(0)
        yield prefix, group
        for name, spec in group["properties"].items():
            references = [branch["$ref"] for branch in _branches(spec) if "$ref" in branch]
            waiting += [(f"{prefix}{name}.", schema["$defs"][each.rsplit("/", 1)[-1]]) for each in references]


def _branches(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from (spec, *spec.get("oneOf", ()), *spec.get("anyOf", ()))


def _also_one(spec: dict[str, Any]) -> dict[str, Any]:
    """Let a string stand for a list of strings, as the declaration does: an editor must not mark `data: file.json`."""
    if "anyOf" in spec and any(branch.get("type") == "array" for branch in spec["anyOf"]):
        return {**spec, "anyOf": [{"type": "string", "minLength": 1}, *spec["anyOf"]]}
    if spec.get("type") != "array":
        return spec
    about: dict[str, Any] = {key: spec[key] for key in ("default", "description", "title") if key in spec}
    several = {key: value for key, value in spec.items() if key not in about}
    return {"anyOf": [{"type": "string", "minLength": 1}, several], **about}


def _table(prefix: str, group: Mapping[str, Any]) -> str:
    lines = [say("recipe.reference.heads"), "| --- | --- | --- | --- |"]
    for name, spec in group["properties"].items():
        if "$ref" not in spec:
            default = _default(spec["default"]) if "default" in spec else "–"
            cells = (f"`{prefix}{name}`", _spaced(_type(spec)), default, _meaning(f"{prefix}{name}", spec))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(spec: Mapping[str, Any]) -> str:
    """Return a type and its range in words, such as ``whole number, at least 1; or none``."""
    match spec:
        case {"$ref": _}:
            return say("recipe.reference.group")
        case {"anyOf": branches} | {"oneOf": branches}:
            words = [_type(branch) for branch in branches]
            commas = say("recipe.reference.and_limit"), say("recipe.reference.comma")
            several = any(comma in word for word in words for comma in commas)
            return say("recipe.reference.or_else" if several else "recipe.reference.or").join(words)
        case {"enum": values}:
            *others, last = (f"`{value}`" for value in values)
            return say("recipe.reference.comma").join(others) + say("recipe.reference.or") + last
        case {"const": value}:
            return f"`{value}`"
        case {"type": "array"}:
            return say("recipe.reference.strings")
        case _:
            return say("recipe.reference.and_limit").join([_name(spec["type"]), *_limits(spec)])


def _name(kind: str) -> str:
    """Return the name of a JSON type in words."""
    names = {
        "integer": say("recipe.reference.integer"),
        "number": say("recipe.reference.number"),
        "string": say("recipe.reference.string"),
        "boolean": say("recipe.reference.boolean"),
        "null": say("recipe.reference.none"),
        "object": say("recipe.reference.group"),
    }
    return names[kind]


def _limits(spec: Mapping[str, Any]) -> list[str]:
    words = [say(word, value=_number(spec[key])) for key, word in _LIMITS.items() if key in spec]
    return words + ([say("recipe.reference.not_empty")] if spec.get("minLength") else [])


def _spaced(words: str) -> str:
    """Return Chinese with a space between it and code, and none around a conjunction."""
    words = re.sub(f"(?<={_CHINESE}) (?=或)|(?<=或) (?={_CHINESE})", "", words)
    return re.sub(f"(?<={_CHINESE})(?=`)|(?<=`)(?={_CHINESE})", " ", words)


def _number(value: float) -> str:
    """Return 9223372036854775808 as 2^63."""
    exponent = int(value).bit_length() - 1
    return f"2^{exponent}" if exponent >= 20 and value == 2**exponent else str(value)


def _default(value: Any) -> str:
    if value is None or value == []:
        return say("recipe.reference.none")
    if isinstance(value, dict):
        return say("recipe.reference.below")
    return f"`{', '.join(value)}`" if isinstance(value, list) else f"`{value}`"


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
