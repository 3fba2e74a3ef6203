"""``weitune compare``: several runs in one report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from weitune.cli.shared.open_runs import note
from weitune.cli.shared.options import accept_changed_base_option, json_option
from weitune.messages import say
from weitune.messages.language import speaking


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN…")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PAGE", help="Also write one HTML page.")
@accept_changed_base_option
@json_option
def command(runs: tuple[Path, ...], output: Path | None, accept_changed_base: bool, as_json: bool) -> None:
    """Put runs side by side: how their recipes differ, their results, and their curves.

    No model is loaded. A run whose base is on this disk and is not the one that it was trained on is refused. The page
    links to the reports of its runs, and these link to it if it lies beside them.
    """
    if len(runs) < 2:
        raise click.UsageError(say("cli.compare.two_runs_needed"))
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from weitune.errors import InputError
    from weitune.files.json_files import json_bytes
    from weitune.files.paths import user_path
    from weitune.files.publish import publish_text
    from weitune.report.comparison import compare, differences, names_of, results
    from weitune.report.links import note_comparison
    from weitune.report.run_record import RunRecord
    from weitune.report.run_report import write_report
    from weitune.run.names import REPORT
    from weitune.run.run_folder import RunFolder

    records = [RunRecord.read(run) for run in runs]
    for run in runs:
        opened = RunFolder(run, accept_changed_base=accept_changed_base, say=note)
        if user_path(opened.recipe.model).exists():
            opened.base_files()
    if as_json:
        names = names_of(records)
        with speaking("en"):
            told = {"differences": differences(records), "results": results(records)}
        click.echo(json_bytes({title: _by_name(rows, names) for title, rows in told.items()}, indent=1), nl=False)
    console = Console(highlight=False, quiet=as_json)
    tables = (
        (say("report.comparison.differences"), differences(records)),
        (say("report.comparison.results"), results(records)),
    )
    for title, rows in tables:
        table = Table(title=title, title_justify="left", box=None)
        for head in ("", *names_of(records)):
            table.add_column(Text(head), overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    if output is not None:
        try:
            publish_text(compare(records, output.absolute().parent), output)
        except OSError as error:
            raise InputError("cli.compare.not_written", output=output, strerror=error.strerror) from None
        for record in records:
            if note_comparison(record.path, output) and (record.path / REPORT).is_file():
                with suppress(InputError):  # it keeps the links it has
                    write_report(record.path)
        from weitune.cli.shared.terminal import console as aside

        aside().print(say("cli.compare.written", output=output), markup=False)


def _by_name(rows: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the rows of a table as {first cell: {name of a run: its cell}}."""
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}
