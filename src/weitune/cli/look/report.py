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
    from weitune.errors import InputError
    from weitune.report.run_report import write_report

    for run in runs:
        try:
            report = write_report(run)
        except OSError as error:
            raise InputError("cli.report.not_written", run=run, strerror=error.strerror or error) from None
        except (ValueError, KeyError, TypeError) as error:  # of files that a crash or another program left
            raise InputError("cli.report.cannot_be_read", run=run, error=error) from None
        console().print(say("cli.report.written", report=report), markup=False)
