"""Command-line options for every field of :class:`.Sampling`, made from its declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import click

from weitune.generate.sampling import Sampling


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every field of :class:`.Sampling`."""
    kinds = get_type_hints(Sampling)
    for option in reversed(fields(Sampling)):
        declare = click.option(
            f"--{option.name.replace('_', '-')}",
            type=_number(kinds[option.name]),
            default=option.default,
            show_default=option.default is not None,
            help=option.metadata["help"],
        )
        command = declare(command)
    return command


def _number(kind: Any) -> type:
    """Return the type ``kind``, without the None that may be an alternative to it."""
    number: type = next((each for each in get_args(kind) if each is not NoneType), kind)
    return number


def sampling_from(options: Mapping[str, Any]) -> Sampling:
    """Return what the options of :func:`sampling_options` say. Raises InputError for values out of range."""
    return Sampling(**{option.name: options[option.name] for option in fields(Sampling)})
