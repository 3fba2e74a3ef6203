"""Read the data that a recipe names, as its options say."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weitune.data.formats.kinds import CONVERSATIONS, PAIRS_ONLY, PREFERENCES, Kind
from weitune.data.formats.parse import Options
from weitune.data.problems import shown_name
from weitune.data.read.conversations import Reader
from weitune.data.read.source import contains
from weitune.errors import RecipeError
from weitune.recipe.schema import Recipe


def read_options(recipe: Recipe) -> Options:
    """Return how ``recipe`` has rows read; the tutorial joins Alpaca's instruction and input without a newline."""
    joiner = "" if recipe.tokens.template == "tutorial" else "\n"
    return Options(recipe.format, recipe.columns, joiner, recipe.encoding, _kinds(recipe))


def _kinds(recipe: Recipe) -> frozenset[Kind]:
    """Return the kinds of rows from which ``recipe`` learns."""
    if recipe.preference is None:
        return CONVERSATIONS
    return PAIRS_ONLY if recipe.preference.needs_pairs else PREFERENCES


def recipe_reader(recipe: Recipe, files: Sequence[str] | None = None, kinds: frozenset[Kind] | None = None) -> Reader:
    """Return the reader of ``recipe``'s data, or of ``files``; it reads rows of ``kinds``, or of those to learn from.

    Raises RecipeError if `encoding` names a file that belongs neither to these nor to the recipe's other data.
    """
    options = read_options(recipe)
    options = options if kinds is None else replace(options, kinds=kinds)
    reader = Reader(recipe.data if files is None else files, options)
    if files is not None and list(files) != recipe.validation_files:
        return reader  # rows that the recipe does not name
    others = recipe.validation_files if files is None else recipe.data
    unknown = [name for name in reader.unused_encodings if not _belongs(name, others)]
    if unknown and not reader.problems:
        known = [name for source in reader.sources if source.is_text for name in (source.given, source.name)]
        near = difflib.get_close_matches(unknown[0], list(dict.fromkeys([*known, *others])), n=1, cutoff=0.0)
        name = shown_name(unknown[0])
        if near:
            raise RecipeError("data.recipe_reader.encoding_of_no_file_near", name=name, near=shown_name(near[0]))
        raise RecipeError("data.recipe_reader.encoding_of_no_file", name=name)
    return reader


def _belongs(name: str, others: Sequence[str]) -> bool:
    """Return whether ``name`` is one of ``others``, is in one of them, or contains one."""
    return any(name == each or contains(each, Path(name)) or contains(name, Path(each)) for each in others)
