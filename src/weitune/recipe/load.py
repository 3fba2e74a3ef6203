"""Read a recipe: a YAML file or a preset, then overrides by dotted name, then validation.

All problems are reported together, each with its key; an unknown key names the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from weitune.errors import RecipeError
from weitune.recipe.schema import Recipe


def fields(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every leaf field of the recipe as (dotted name, field)."""
    for name, info in model.model_fields.items():
        section = section_of(info)
        if section is None:
            yield prefix + name, info
        else:
            yield from fields(section, f"{prefix}{name}.")


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """Return the section class of a field that is a group of fields, else None."""
    for candidate in (info.annotation, *get_args(info.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def preset_names() -> list[str]:
    """Return the names of the recipes that weitune ships."""
    folder = resources.files("weitune.recipe") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe_file(name: str) -> dict[str, Any]:
    """Read the YAML mapping in the file ``name``, or the shipped preset of that name.

    Raises RecipeError if there is none, or if it is not a YAML mapping.
    """
    path = Path(name)
    if path.is_file():
        text = path.read_text(encoding="utf-8-sig")
    elif name in preset_names():
        text = (resources.files("weitune.recipe") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise RecipeError(f"there is no recipe file '{name}'",
                          f"Give the path of a YAML file, or one of the presets: {', '.join(preset_names())}.")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not valid YAML: {error}", "Mend the line named above.") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{name} holds {_kind(tree)}, but a recipe is a mapping of keys to values",
                          "Begin with a line such as  model: Qwen/Qwen2.5-7B-Instruct")
    return tree


def build_recipe(tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Validate ``tree`` (nested mappings) with ``overrides`` (dotted name to value) laid over it.

    Raises RecipeError with every problem found.
    """
    merged = _copied(tree)
    for dotted, value in (overrides or {}).items():
        _put(merged, dotted.split("."), value)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        title = "the recipe has a problem" if len(lines) == 1 else f"the recipe has {len(lines)} problems"
        raise RecipeError("\n  ".join([f"{title}:", *lines]), "See docs/recipe.md for every key.") from None


def load_recipe(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read the recipe ``name`` (a file or a preset), if any, lay ``overrides`` over it, and validate."""
    return build_recipe(read_recipe_file(name) if name else {}, overrides)


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe as YAML, defaults included, that :func:`load_recipe` reads back to an equal value."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    return text


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Set ``tree[path[0]][path[1]]…`` to ``value``, making the mappings on the way."""
    *parents, last = path
    for depth, key in enumerate(parents):
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            found = ".".join(parents[: depth + 1])
            raise RecipeError(f"{'.'.join(path)} cannot be set: '{found}' is {_kind(below)}, not a group of keys",
                              f"Write '{found}' as a mapping in the recipe file.")
        tree = below
    tree[last] = value


def _explain(problem: Mapping[str, Any]) -> str:
    """Turn one pydantic problem into a line for people: key, what was expected, what was found."""
    path = [str(part) for part in problem["loc"] if not str(part).startswith(("constrained-", "literal[", "function-"))]
    key = ".".join(path)
    match problem["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key{_nearest(key)}"
        case "missing":
            return f"{key}: missing, and has no default"
        case kind:
            found = problem["input"]
            wanted = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
            if kind in {"int_type", "float_type", "string_type", "bool_type"} or "parsing" in kind:
                wanted = wanted.split(",")[0]
            return f"{key}: {wanted}; found {found!r}"


def _nearest(key: str) -> str:
    known = [name for name, _ in fields()]
    known += sorted({name.rsplit(".", 1)[0] for name in known if "." in name})
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:  # the right word in the wrong place, such as `r` for `lora.r`
        near = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
    return f"; did you mean '{near[0]}'?" if near else ""


def _kind(value: object) -> str:
    names = {type(None): "nothing", str: "a text", list: "a list", bool: "a truth value", int: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
