"""Commands in the user's language: their help, and what click says when they are used wrongly.

The declarations of commands, options and recipe keys are in English. ``messages/zh`` has their help in Chinese: in
``help.json`` by command (``data.check``, ``data.check.summary``) and by option (``data.check --row``, or ``* --json``
where several commands share it), in ``keys.json`` by the recipe's key; in ``click.json`` click's own texts.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import click

from weitune.cli.shared.help_page import ChineseHelp
from weitune.messages import catalogue
from weitune.messages.language import language
from weitune.messages.translate import by_templates

_DEFAULT = re.compile(r"  \[default: .*\]$")


class ChineseContext(click.Context):
    """A context whose help pages are laid out for Chinese."""

    formatter_class = ChineseHelp


def localized(command: click.Command, path: str) -> click.Command:
    """Return ``command``, named ``path`` with dots, in the user's language; in English, the command itself."""
    if language() == "en":
        return command
    told = copy.copy(command)
    told.context_class = ChineseContext
    told.help = help_text(path) or command.help
    told.short_help = help_text(f"{path}.summary") or command.short_help
    told.params = [_option(param, path) if isinstance(param, click.Option) else param for param in command.params]
    if isinstance(command, click.Group) and isinstance(told, click.Group):
        told.commands = {name: localized(each, f"{path}.{name}") for name, each in command.commands.items()}
    return told


def help_text(name: str) -> str:
    """Return the help of a command or an option in the user's language; empty in English, which is declared."""
    return "" if language() == "en" else str(catalogue("help", language()).get(name, ""))


def option_help(option: click.Option, path: str) -> str:
    """Return the help of an option of the command ``path`` in the user's language; empty if it has none there."""
    names = [each for each in option.opts if each.startswith("--")]
    if own := next(filter(None, (help_text(f"{path} {name}") for name in names)), ""):
        return own
    text = option.help or ""
    for name in names:
        described = _keys().get(name.removeprefix("--"))
        if described is not None and _DEFAULT.sub("", text) == described:
            default = _DEFAULT.search(text)
            return str(catalogue("keys", language()).get(name.removeprefix("--"), "")) + (default[0] if default else "")
    return next(filter(None, (help_text(f"* {name}") for name in names)), "")


def show_error(error: click.ClickException) -> None:
    """Write what click says about a wrong use to standard error."""
    if language() == "en" or not isinstance(error, click.UsageError):
        error.show()
        return
    if error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
        hint = "Try '{command} {option}' for help."
        values = {"command": error.ctx.command_path, "option": error.ctx.help_option_names[0]}
        click.echo(_clicks()[hint].format(**values) + "\n", err=True)
    text = error.format_message()
    if isinstance(error, click.BadParameter) and error.message:  # it stands within another one
        text = text.replace(error.message, by_templates(error.message, _clicks()))
    click.echo(_clicks()["Error: {message}"].format(message=by_templates(text, _clicks())), err=True)


def _option(option: click.Option, path: str) -> click.Option:
    told = copy.copy(option)
    told.help = option_help(option, path) or option.help
    return told


def _clicks() -> dict[str, Any]:
    return dict(catalogue("click", language()))


@cache
def _keys() -> dict[str, str]:
    from weitune.recipe.load import fields  # which `weitune --help` does without

    return {dotted: " ".join((info.description or "").split()) for dotted, info in fields()}
