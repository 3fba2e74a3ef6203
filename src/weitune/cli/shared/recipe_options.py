"""Command-line options for every key of the recipe, made from its declaration."""

from __future__ import annotations

import types
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from weitune.errors import RecipeError
from weitune.recipe.load import fields
from weitune.recipe.section import Repeatable

_EMPTY_LIST = "[]"
_NAMES = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: "true|false"}


def recipe_options(command: Callable[..., Any], only: Container[str] | None = None) -> Callable[..., Any]:
    """Add an option ``--section.key`` for each key of the recipe (in ``only``); dashes may replace underscores."""
    for dotted, info in reversed([entry for entry in fields() if only is None or entry[0] in only]):
        flags = list(dict.fromkeys([f"--{dotted}", f"--{dotted.replace('_', '-')}"]))
        option = click.option(
            *flags,
            _parameter(dotted),
            metavar=_metavar(info),
            help=_help(info),
            multiple=_repeatable(info) is not None,
            type=str,
        )
        command = option(command)
    return command


def overrides_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the options that were given out of a command's parameters: dotted name to value."""
    chosen = {}
    for dotted, info in fields():
        given = values.get(_parameter(dotted))
        if given is not None and given != ():
            chosen[dotted] = _items(info, given) if isinstance(given, tuple) else _value(dotted, info, given)
    return chosen


def _parameter(dotted: str) -> str:
    return dotted.replace(".", "__")


def _items(info: FieldInfo, texts: tuple[str, ...]) -> list[str] | None:
    """Return the list of an option that is given once for each item; `none` empties a key, `[]` is the empty list."""
    if texts == ("none",) and type(None) in _kinds(info):
        return None
    return [] if texts == (_EMPTY_LIST,) else list(texts)


def _value(dotted: str, info: FieldInfo, text: str) -> Any:
    """Return an option's value for the schema to validate: mappings are read as YAML, and `none` empties a key."""
    kinds = _kinds(info)
    if type(None) in kinds and str not in kinds and text.lower() in {"none", "null"}:
        return None
    if text == _EMPTY_LIST and any(get_origin(kind) is list for kind in kinds):
        return []
    if any(get_origin(kind) is dict for kind in kinds):
        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # also a date such as 2024-99-99
            raise RecipeError("cli.recipe_options.not_a_mapping", dotted=dotted, text=text) from None
    return text


def _kinds(info: FieldInfo) -> tuple[Any, ...]:
    """Return the alternatives of a field's type, without models: their keys are separate options."""
    kinds = _alternatives(info.annotation)
    return tuple(kind for kind in kinds if not (isinstance(kind, type) and issubclass(kind, BaseModel)))


def _alternatives(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif get_origin(kind) in {Union, types.UnionType}:
        for each in get_args(kind):
            yield from _alternatives(each)
    else:
        yield kind


def _repeatable(info: FieldInfo) -> Repeatable | None:
    """Return the :class:`.Repeatable` of a field whose option may be given once for each item of its list."""
    annotated = (kind for kind in (info.annotation, *get_args(info.annotation)) if get_origin(kind) is Annotated)
    metadata = [*info.metadata, *(mark for kind in annotated for mark in get_args(kind)[1:])]
    return next((mark for mark in metadata if isinstance(mark, Repeatable)), None)


def _metavar(info: FieldInfo) -> str:
    parts: list[str] = []
    for kind in _kinds(info):
        if get_origin(kind) is Literal:
            parts += map(str, get_args(kind))
        elif get_origin(kind) is list:
            repeatable = _repeatable(info)
            parts.append(repeatable.metavar if repeatable else "NAME,…")
        elif get_origin(kind) is dict:
            parts.append("{KEY: VALUE,…}")
        elif kind is not type(None):
            parts.append(_NAMES.get(kind, str(kind)))
    return "|".join(parts) or _NAMES[float]  # a group that a number may stand for


def _help(info: FieldInfo) -> str:
    text = " ".join((info.description or "").split())
    if info.default is PydanticUndefined or info.default is None or isinstance(info.default, BaseModel):
        return text
    default = ",".join(info.default) if isinstance(info.default, list) else info.default
    return f"{text}  [default: {default}]"
