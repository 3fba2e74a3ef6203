"""What the commands of ``weitune data`` have in common: FILES, and the options that say how these are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from weitune.cli.shared.recipe_options import overrides_from, recipe_options
from weitune.messages import say

NO_MODEL = "none"
"""The model in a recipe for commands that need none."""


def reading_options(*keys: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add FILES, --recipe and an option for each of the recipe's ``keys``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = recipe_options(function, only=keys)
        function = click.option("--recipe", "recipe_file", metavar="RECIPE", help="Take files and options from it.")(
            function
        )
        return click.argument("files", nargs=-1, metavar="[FILES]…")(function)

    return decorate


def recipe_of(
    files: tuple[str, ...], recipe_file: str | None, options: dict[str, Any], method: str | None = None
) -> Any:
    """Build the recipe that FILES, --recipe and options describe; its model may be missing.

    ``method`` is its `preference.method`, if the user named none.
    """
    from weitune.recipe.load import build_recipe, read_recipe_file

    tree = read_recipe_file(recipe_file) if recipe_file is not None else {}
    overrides = overrides_from(options)
    if method is not None:
        overrides["preference.method"] = method
    if files:
        overrides["data"] = list(files)
    if not tree.get("data") and "data" not in overrides:
        raise click.UsageError(say("cli.data.no_files"))
    return build_recipe({"model": NO_MODEL, **tree}, overrides)


def recipe_and_reader(
    files: tuple[str, ...], recipe_file: str | None, options: dict[str, Any]
) -> tuple[Any, Any, str | None]:
    """Return the recipe of :func:`recipe_of`, the reader of its data, and the method that fits them if none is named.

    Without a method, rows of every kind are read, and the first one tells which they are.
    """
    from weitune.data.formats.kinds import ANY_KIND
    from weitune.data.prepare.recipe_reader import recipe_reader

    recipe = recipe_of(files, recipe_file, options)
    if recipe.preference is not None:
        return recipe, recipe_reader(recipe), None
    reader = recipe_reader(recipe, kinds=ANY_KIND)
    kind = reader.first_kind()
    if kind is None or kind == "conversations":
        return recipe, reader, None
    method = "dpo" if kind == "pairs" else "kto"
    return recipe_of(files, recipe_file, options, method), reader, method
