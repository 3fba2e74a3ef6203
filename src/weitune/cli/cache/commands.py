"""``weitune cache``: list what the cache folder holds, and delete it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from weitune.cli.cache.contents import KINDS, Entry, delete, entries, unreadable
from weitune.cli.shared.options import json_option
from weitune.files.cache import cache_folder
from weitune.messages import say
from weitune.messages.quantities import size_text

_WIDE = 200
"""Width of the table, in characters, if there is no terminal."""
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Age(click.ParamType):  # type: ignore[type-arg]
    """An age such as ``30d``, in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return ``value`` in seconds."""
        if isinstance(value, int | float):
            return value
        age = re.fullmatch(r"(\d{1,6})([mhdw])", str(value))
        if not age:
            self.fail(say("cli.cache.not_an_age", value=value), param, ctx)
        return int(age[1]) * _SECONDS[age[2]]


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List what weitune keeps in its cache folder: kind, size, last use, and what it was made for.

    All of it is made again when it is needed. Models downloaded from a hub are in the cache of the hub's client
    (`hf cache ls`).
    """
    if context.invoked_subcommand is not None:
        return
    kept = entries()
    _say_unreadable()
    if as_json:
        from weitune.files.json_files import json_bytes

        shown = [
            {"kind": entry.kind, "path": str(entry.path), "bytes": entry.bytes, "used": entry.used, "for": entry.owner}
            for entry in kept
        ]
        click.echo(json_bytes({"folder": str(cache_folder()), "entries": shown}, indent=1), nl=False)
        return
    _show(kept)
    print(say("cli.cache.total", size=_total(kept), folder=cache_folder()))


@command.command()
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only this kind; may be repeated.")
@click.option("--older-than", type=Age(), metavar="AGE", help="Only what was not used for so long: 30d, 12h, 2w.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask first.")
def clear(kinds: tuple[str, ...], older_than: float | None, dry_run: bool, yes: bool) -> int:
    """Delete what weitune keeps in its cache folder: all of it, or what the options name.

    Only files that weitune wrote are deleted. What a process is writing is left alone, and processes that use a file
    keep it until they end.
    """
    _say_unreadable()
    now = time.time()
    chosen = [
        entry
        for entry in entries()
        if (not kinds or entry.kind in kinds) and (older_than is None or now - entry.used >= older_than)
    ]
    writing, chosen = [e for e in chosen if e.in_use], [e for e in chosen if not e.in_use]
    _show(chosen)
    for entry in writing:
        print(say("cli.cache.left_alone", path=entry.path))
    if not chosen:
        print(say("cli.cache.nothing_to_delete"))
        return 0
    size = _total(chosen)
    if dry_run:
        print(say("cli.cache.would_be_deleted", size=size))
        return 0
    if not yes and not _agreed(say("cli.cache.delete", size=size)):
        print(say("cli.cache.nothing_was_deleted"))
        return 0
    return _delete(chosen)


def _say_unreadable() -> None:
    for path in unreadable():
        print(say("cli.cache.unreadable", path=path), file=sys.stderr)


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError(say("cli.cache.nobody_to_ask"))
    return click.confirm(question)


def _delete(chosen: Sequence[Entry]) -> int:
    freed = [_freed(entry) for entry in chosen]
    print(say("cli.cache.deleted", size=size_text(sum(size or 0 for size in freed))))
    return 2 if None in freed else 0


def _freed(entry: Entry) -> int | None:
    """Delete ``entry`` and return its bytes; if that fails, print the reason and return None."""
    try:
        return delete(entry)
    except OSError as error:
        print(say("cli.cache.not_deleted", path=entry.path, strerror=error.strerror or error), file=sys.stderr)
        return None


def _total(shown: Sequence[Entry]) -> str:
    return size_text(sum(entry.bytes for entry in shown))


def _show(shown: Sequence[Entry]) -> None:
    if not shown:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    table.add_column(say("cli.cache.kind"), overflow="fold")
    table.add_column(say("cli.cache.size"), overflow="fold", justify="right")
    for heading in (say("cli.cache.last_use"), say("cli.cache.made_for"), say("cli.cache.place")):
        table.add_column(heading, overflow="fold")
    for entry in shown:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        place = f"{entry.path.parent.name}/{entry.path.name}"
        table.add_row(*map(Text, (entry.kind, size_text(entry.bytes), used, entry.owner or "–", place)))
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE).print(table)
