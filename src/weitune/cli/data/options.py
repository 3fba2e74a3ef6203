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


def recipe_of(files: tuple[str, ...], recipe_file: str | None, options: dict[str, Any]) -> Any:
    """Build the recipe that FILES, --recipe and options describe; its model may be missing."""
    from weitune.recipe.load import build_recipe, read_recipe_file

    tree = read_recipe_file(recipe_file) if recipe_file is not None else {}
    overrides = overrides_from(options)
    if files:
        overrides["data"] = list(files)
    if not tree.get("data") and "data" not in overrides:
        raise click.UsageError(say("cli.data.no_files"))
    return build_recipe({"model": NO_MODEL, **tree}, overrides)
