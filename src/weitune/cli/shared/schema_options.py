"""Command-line options that keep answers to JSON: ``--schema`` and ``--json-object``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from weitune.messages import say


def schema_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options."""
    command = click.option("--json-object", is_flag=True, help="Keep every answer to a JSON object.")(command)
    return click.option(
        "--schema",
        "schema_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Keep every answer to the JSON schema in FILE.",
    )(command)


def schema_from(options: Mapping[str, Any], *, here: bool = True) -> Mapping[str, Any] | None:
    """Return the schema that the options of :func:`schema_options` name; None without them.

    It is checked if the answers are made ``here`` (a server checks it itself), so that a schema that answers cannot be
    kept to is refused before a model is loaded. Raises InputError for such a one, or if there is none in the file,
    MissingExtraError if ``llguidance`` is not installed.
    """
    from weitune.generate.constrain.schema import ANY_OBJECT, JsonRule
    from weitune.generate.constrain.schema_file import read_schema

    file: Path | None = options["schema_file"]
    if file is not None and options["json_object"]:
        raise click.UsageError(say("cli.schema_options.both"))
    if file is None and not options["json_object"]:
        return None
    schema = ANY_OBJECT if file is None else read_schema(file)
    if here:
        JsonRule(schema)
    return schema
