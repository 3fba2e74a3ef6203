"""Read a recipe: a YAML file or a preset, then overrides by dotted name, then validation.

All problems are reported together, each with its key; an unknown key names the nearest known one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from weitune.errors import RecipeError
from weitune.messages import joined, say
from weitune.recipe.preference import MethodOrPreference, Preference, recipe_defaults
from weitune.recipe.problems import explain, kind
from weitune.recipe.schema import Recipe

_BEHAVIOUR_BEFORE_THE_KEY = {"tokens.learn_empty_reasoning": True}


def fields(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every leaf field of the recipe as (dotted name, field), and every group that a word may stand for."""
    for name, info in model.model_fields.items():
        section = section_of(info)
        if section is None or section is not info.annotation:
            yield prefix + name, info
        if section is not None:
            yield from fields(section, f"{prefix}{name}.")


def values(recipe: Recipe) -> dict[str, Any]:
    """Return the value of every leaf field by its dotted name; None for a field of a group that is a word."""
    by_key: dict[str, Any] = {}
    for key, _ in fields():
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        if not isinstance(value, BaseModel):
            by_key[key] = value
    return by_key


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """Return the section class of a field that is a group of fields, else None."""
    for candidate in (info.annotation, *map(_bare, get_args(info.annotation))):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


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
        text = _read_text(path)
    elif name in preset_names():
        text = (resources.files("weitune.recipe") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise RecipeError("recipe.load.no_such_recipe", name=name, presets=", ".join(preset_names()))
    tree = _parsed(text, name)
    if not isinstance(tree, dict):
        raise RecipeError("recipe.load.not_a_mapping", name=name, kind=kind(tree))
    return tree


def build_recipe(tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Validate ``tree`` (nested mappings) with ``overrides`` (dotted name to value) laid over it.

    Raises RecipeError with every problem.
    """
    merged = _copied(tree)
    for dotted, value in (overrides or {}).items():
        _put(merged, dotted.split("."), value)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        lines = explain(error.errors(), merged, [key for key, _ in fields()])
        title = say("recipe.load.problems", count=len(lines))
        raise RecipeError(
            "recipe.load.invalid", lines=joined("\n  ", [say("recipe.load.heading", title=title), *lines])
        ) from None


def recorded(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``tree``, the recipe that a run's folder records, with the keys that its version of weitune did not have.

    Each gets the value for what that version did, so that the run means what it meant when it was made.
    """
    completed = _copied(tree)
    for dotted, value in _BEHAVIOUR_BEFORE_THE_KEY.items():
        *parents, last = dotted.split(".")
        below = completed
        for parent in parents:
            below = below.setdefault(parent, {}) if isinstance(below, dict) else {}
        if isinstance(below, dict):
            below.setdefault(last, value)
    return completed


def load_recipe(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read the recipe ``name`` (a file or a preset), if any, lay ``overrides`` over it, and validate.

    The presets are made for dialogues. With preferences, keys that then have other defaults are not taken from them.
    """
    tree = read_recipe_file(name) if name else {}
    preference = _preference_in(overrides or {})
    if name and not Path(name).is_file() and preference is not None:
        for group, defaults in recipe_defaults(preference).items():
            for key in defaults:
                tree.get(group, {}).pop(key, None)
    return build_recipe(tree, overrides)


def _preference_in(overrides: Mapping[str, Any]) -> Preference | None:
    """Return the group ``preference`` that ``overrides`` give; None if there is none, or if it is not valid."""
    tree: dict[str, Any] = {}
    for dotted, value in overrides.items():
        _put(tree, dotted.split("."), value)
    try:
        given: Preference | None = TypeAdapter(MethodOrPreference | None).validate_python(tree.get("preference"))
    except ValidationError:
        return None  # validating the whole recipe says what is wrong
    return given


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe as YAML, defaults included, that :func:`load_recipe` reads back to an equal value."""
    tree = recipe.model_dump(mode="json")
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError("recipe.load.not_utf_8", path=path, reason=error.reason, start=error.start) from None
    except OSError as error:
        raise RecipeError("recipe.load.cannot_read", path=path, strerror=error.strerror) from None


class _Loader(yaml.SafeLoader):
    """The safe loader, except that a repeated key is an error: YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=say("recipe.load.key_given_twice", key=key.value), problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The safe dumper, except that it escapes Unicode's own line breaks, which would be read back as newlines."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        style = '"' if set(text) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def _parsed(text: str, name: str) -> Any:
    """Return the YAML value in ``text``. Raises RecipeError with line and column if it is not valid YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader, see above)
    except (yaml.YAMLError, ValueError) as error:  # also a control character; a date such as 2024-99-99
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is None:
            raise RecipeError("recipe.load.not_valid_yaml", name=name, error=error) from None
        problem = getattr(error, "problem", None) or error
        line, column = mark.line + 1, mark.column + 1
        raise RecipeError("recipe.load.not_yaml_at", name=name, line=line, column=column, problem=problem) from None


def _copied(tree: Mapping[str, Any], model: type[BaseModel] | None = Recipe) -> dict[str, Any]:
    """Copy nested mappings; a section with nothing in it (all its lines may be comments) becomes an empty group.

    A group that a recipe need not have stays away.
    """
    copy = {}
    for key, value in tree.items():
        info = model.model_fields.get(key) if model else None
        section = section_of(info) if info else None
        empty = value is None and section is not None and info is not None and info.default is not None
        copy[key] = {} if empty else _copied(value, section) if isinstance(value, Mapping) else value
    return copy


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Set ``tree[path[0]][path[1]]…`` to ``value``, making the mappings on the way.

    A word or number that stands for a group sets the key that it is short for; the group's other keys stay.
    """
    *parents, last = path
    for depth, key in enumerate(parents):
        below = tree[key] = _as_group(key, tree.get(key))
        if not isinstance(below, dict):
            parent = ".".join(parents[: depth + 1])
            raise RecipeError("recipe.load.not_a_group", key=".".join(path), parent=parent, kind=kind(below))
        tree = below
    if not parents and value is not None and _short_for(last) and not isinstance(value, dict):
        _put(tree, [last, _short_for(last)], value)
    else:
        tree[last] = value


def _as_group(key: str, value: Any) -> Any:
    """Return the group that ``value`` of a recipe stands for: nothing for an empty one, a word or number for a key."""
    if value is None:
        return {}
    return {short: value} if (short := _short_for(key)) and not isinstance(value, dict) else value


def _short_for(key: str) -> str:
    """Return the key of the group ``key`` that a word or number stands for, or an empty string."""
    info = Recipe.model_fields.get(key)
    short: str = getattr(info and section_of(info), "SHORT_FOR", "")
    return short
