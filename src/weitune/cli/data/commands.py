"""``weitune data``: check dialogues, show exactly what is learned from them, convert them, and make new ones."""

from __future__ import annotations

import os
from typing import Any

import click

from weitune.cli.data.answer import answer_command
from weitune.cli.data.options import NO_MODEL, reading_options, recipe_and_reader, recipe_of
from weitune.cli.data.pair import pair_command
from weitune.cli.shared.options import json_option
from weitune.messages import say

_READING = ("system", "columns", "format", "encoding", "weights", "model", "hub", "revision")
_TOKENS = (
    "tokens.max_length",
    "tokens.truncation",
    "tokens.template",
    "tokens.template_args",
    "tokens.supervise",
    "tokens.learn_empty_reasoning",
)


@click.group()
def command() -> None:
    """Look at dialogues as the model will see them.

    FILES are JSON, JSON Lines, CSV, TSV, Parquet or Arrow (also .gz and .zst), folders of these, or hub ids.
    """


@command.command("check", short_help="Judge data before training.")
@reading_options(*_READING, *_TOKENS, "train.batch_size", "preference.method")
@json_option
def check_command(files: tuple[str, ...], recipe_file: str | None, as_json: bool, **options: Any) -> int:
    """Judge data before training: every problem, exact accounts, lengths, steps.

    With --model, lengths are in its tokens and every row is framed by its chat template. Exit code 0 means that
    training can begin, 2 that something must be fixed first. Pairs and judged answers are checked for the
    --preference.method that fits them, unless you name one.
    """
    from weitune.cli.shared.terminal import progress
    from weitune.data.show.check import check

    recipe, reader, method = recipe_and_reader(files, recipe_file, options)
    framing = None if recipe.model == NO_MODEL else _open_framing(recipe).framing
    with progress(say("cli.data.checking"), unit="row") as bar:
        result = check(recipe, framing, bar.update, reader)
    if as_json:
        from weitune.files.json_files import json_bytes

        click.echo(json_bytes(result.to_json(), indent=1), nl=False)
    else:
        from weitune.cli.data.view import print_check

        print_check(result, method)
    return 0 if result.ready else 2


@command.command("preview", short_help="Show what exactly is learned.")
@reading_options(*_READING, *_TOKENS, "preference.method")
@click.option("--row", type=click.IntRange(1), metavar="N", help="Show only the N-th row of all files together.")
@click.option("--limit", type=click.IntRange(1), help="Rows to show.  [default: 3, in a page 500]")
@click.option("--html", "page_file", metavar="PAGE", help="Write one self-contained page that can be filtered.")
def preview_command(
    files: tuple[str, ...],
    recipe_file: str | None,
    row: int | None,
    limit: int | None,
    page_file: str | None,
    **options: Any,
) -> int:
    """Show examples as the model will see them, and which parts of them are learned.

    Needs --model (or --recipe), for its tokenizer and chat template.
    """
    from itertools import islice

    from weitune.data.show.preview import preview

    recipe, reader, _ = recipe_and_reader(files, recipe_file, options)
    if recipe.model == NO_MODEL:
        raise click.UsageError(say("cli.data.preview_needs_a_model"))
    tokenizer, framing = _open_framing(recipe)
    if reader.problems:
        raise reader.problems.error()
    shown = preview(reader, framing, tokenizer, recipe, row)
    limit = limit or (500 if page_file else 3)
    items = list(islice(shown, None if row else limit))
    if row is not None and not items:
        raise click.UsageError(say("cli.data.no_such_row", row=row, rows=reader.rows))
    if page_file is None:
        from weitune.cli.data.view import print_preview

        print_preview(items, framing.notes)
    else:
        _write_page(page_file, items, recipe, framing.notes)
    return 2 if all(item.problems for item in items) else 0


@command.command("convert", short_help="Write any format as clean lists of messages.")
@reading_options("system", "columns", "format", "encoding")
@click.option("-o", "--output", default="-", metavar="FILE", help="Where to write; standard output if not given.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def convert_command(files: tuple[str, ...], recipe_file: str | None, output: str, force: bool, **options: Any) -> None:
    """Write data of any accepted format as clean JSON Lines.

    Conversations become `messages`; answers that were compared `prompt`, `chosen` and `rejected`; judged ones `prompt`,
    `completion` and `label`. All of these are lists of messages.
    """
    import sys
    from pathlib import Path

    from weitune.cli.shared.terminal import console
    from weitune.data.formats.kinds import ANY_KIND
    from weitune.data.prepare.recipe_reader import recipe_reader
    from weitune.data.prepare.report import source_line
    from weitune.data.read.conversations import read_rows
    from weitune.data.read.source import blank_reason
    from weitune.data.show.convert import write_file, write_rows

    recipe = recipe_of(files, recipe_file, options)
    reader = recipe_reader(recipe, kinds=ANY_KIND)
    read = read_rows(reader, recipe.system)
    rows = write_rows(read, sys.stdout) if output == "-" else write_file(read, Path(output), force=force)
    lines = [source_line(report) for report in reader.reports]
    if reader.blank_rows:
        lines.append("  " + say("data.report.set_aside", count=reader.blank_rows, reason=blank_reason()))
    done = say("cli.data.rows", rows=rows) if output == "-" else say("cli.data.rows_written", rows=rows, file=output)
    console().print("\n".join([*lines, done]), markup=False)


command.add_command(answer_command)
command.add_command(pair_command)


def _open_framing(recipe: Any) -> Any:
    from weitune.cli.shared.terminal import quiet_libraries

    quiet_libraries(models=False)
    from weitune.data.frame.choose import check_arguments
    from weitune.model.load.locate import locate_base
    from weitune.model.load.published import check_published
    from weitune.model.load.tokenizer import open_framing

    files = locate_base(recipe, weights=False)
    check_published(files)
    framed = open_framing(files, recipe.tokens)
    check_arguments(framed.framing, recipe.tokens)
    return framed


def _write_page(page_file: str, items: list[Any], recipe: Any, notes: list[str]) -> None:
    from pathlib import Path

    from weitune.cli.shared.terminal import console
    from weitune.errors import InputError
    from weitune.files.publish import publish_text
    from weitune.report.data_page import data_page
    from weitune.report.markup import both_languages

    with both_languages():
        title = say("cli.data.page_title", data=", ".join(Path(name).name for name in recipe.data), model=recipe.model)
    text = data_page(title, items, notes)
    try:
        target = Path(os.path.realpath(page_file))
        if target.exists() and not target.is_file():  # /dev/stdout
            target.write_text(text, encoding="utf-8", errors="backslashreplace")
        else:
            publish_text(text, target)
    except OSError as error:
        raise InputError("cli.data.page_not_written", page_file=page_file, strerror=error.strerror) from None
    console().print(say("cli.data.page_written", items_count=len(items), page_file=page_file), markup=False)
