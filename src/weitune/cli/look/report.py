"""``weitune report``: the page about a run, written anew."""

from __future__ import annotations

from pathlib import Path

import click

from weitune.messages import say


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
def command(runs: tuple[Path, ...]) -> None:
    """Write `report.html` of a run anew, from the files of its folder.

    No model is loaded. `train`, `eval` and `demo` write it by themselves; this is for a run that was killed, and for
    one of an earlier version.
    """
    from weitune.cli.shared.terminal import console
    from weitune.report.run_report import write_report

    for run in runs:
        console().print(say("cli.report.written", report=write_report(run)), markup=False)
