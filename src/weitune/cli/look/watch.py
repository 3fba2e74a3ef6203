"""``weitune watch``: follow a run from another terminal, or look at it afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weitune.errors import CheckFailed, RunError
from weitune.messages import say
from weitune.run.events import Event, EventTail, Step, Validation
from weitune.run.history import finite
from weitune.run.names import EVENTS
from weitune.run.preference_figures import summary
from weitune.shell import shell_command

if TYPE_CHECKING:
    from weitune.cli.shared.dashboard import Dashboard
    from weitune.run.liveness import Liveness
    from weitune.run.run_folder import RunFolder

_PAUSE_SECONDS = 0.5


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Show the current state and exit.")
@click.option("--alive", is_flag=True, help="Exit with code 0 if a process trains in it now, with 4 if none does.")
@click.option("--json", "as_json", is_flag=True, help="Print the current state as one JSON object and exit.")
def command(run: Path, once: bool, alive: bool, as_json: bool) -> int:
    """Watch the run in the folder RUN until it ends, or until its process is gone.

    Nothing of the run is touched, so Ctrl-C ends only the watching. Where standard output is no terminal, every step is
    a line.
    """
    from rich.console import Console
    from rich.live import Live

    from weitune.cli.shared.dashboard import Dashboard
    from weitune.run.liveness import Liveness
    from weitune.run.run_folder import RunFolder

    folder = RunFolder(run)
    if not (folder.path / EVENTS).is_file():
        raise RunError("cli.watch.nothing_to_watch", run=run, command=shell_command("chat", run))
    if alive or as_json:
        return _asked(folder, alive=alive, as_json=as_json)
    dashboard, liveness = Dashboard(), Liveness(folder.path)
    console = Console(highlight=False)
    if once:
        _show_once(folder.path, folder.typed_events(), dashboard, liveness)
        console.print(dashboard)
    elif console.is_terminal:
        with Live(dashboard, console=console, refresh_per_second=4):
            for _ in follow(folder.path, dashboard, liveness):
                pass
    else:
        for event in follow(folder.path, dashboard, liveness):
            if line := plain_line(event):
                console.print(line, markup=False, soft_wrap=True)
    if dashboard.gone:
        if once or console.is_terminal:
            line = say("cli.watch.gone", step=dashboard.step, reason=dashboard.gone)
            console.print(line, markup=False, soft_wrap=True)
        line = say("cli.watch.continue", command=shell_command("train", "--resume", run))
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _asked(folder: RunFolder, *, alive: bool, as_json: bool) -> int:
    """Answer a program: print the state of the run as JSON, or say whether a process trains in it."""
    from weitune.files.json_files import json_bytes, json_object
    from weitune.run.liveness import is_training
    from weitune.run.names import OUTCOME

    trains = is_training(folder.path)
    if as_json:
        steps = [event for event in folder.typed_events() if isinstance(event, Step)]
        last = {"step": steps[-1].step, "loss": finite(steps[-1].loss)} if steps else {"step": 0, "loss": None}
        state = {
            "run": str(folder.path),
            "alive": trains,
            **last,
            "outcome": json_object(folder.path / OUTCOME) or None,
        }
        click.echo(json_bytes(state, indent=1), nl=False)
    else:
        click.echo(say("cli.watch.alive") if trains else say("cli.watch.not_alive"))
    return 0 if trains or not alive else CheckFailed.exit_code


def _show_once(folder: Path, events: Iterator[Event], dashboard: Dashboard, liveness: Liveness) -> None:
    liveness.gone()
    time.sleep(_PAUSE_SECONDS / 10)
    reason = liveness.gone()  # before the events are read: what the process wrote last is among them
    for event in events:
        dashboard.feed(event)
    if reason and not dashboard.ended:
        dashboard.feed(Event("gone", dashboard.step, reason=reason))


def follow(folder: Path, dashboard: Dashboard, liveness: Liveness | None = None) -> Iterator[Event]:
    """Yield the events of a run as they come, each fed to ``dashboard`` first, until one ends the run.

    With ``liveness``, a run that has ended is followed while a process holds its lock, since that may resume it; and if
    the process dies without an event, a last event of the kind ``gone`` is yielded.
    """
    events = EventTail(folder)
    while True:
        reason = liveness.gone() if liveness else ""  # before the events are read: what was written last is among them
        for event in events.new():
            dashboard.feed(event)
            if liveness and isinstance(event, Step) and (seconds := finite(event.step_seconds)) is not None:
                liveness.step_seconds = seconds
            yield event
        if dashboard.ended:
            if not (liveness and liveness.held):
                return
        elif reason:
            gone = Event("gone", dashboard.step, reason=reason)
            dashboard.feed(gone)
            yield gone
            return
        time.sleep(_PAUSE_SECONDS)


def plain_line(event: Event) -> str:
    """Return an event as one line; empty for events that are not shown."""
    step = event.step
    if isinstance(event, Step):
        values = {"learning_rate": event.learning_rate, "tokens_per_second": event.tokens_per_second}
        return _with_figures(say("cli.watch.step", step=step, loss=event.loss, **values), event.figures)
    if event.kind == "samples":
        return ""
    if isinstance(event, Validation):
        return _with_figures(say("cli.watch.validation", step=step, loss=event.loss), event.figures)
    if event.kind == "gone":
        return say("cli.watch.gone", step=step, reason=event.reason)
    turns = {
        "start": say("cli.watch.start", step=step),
        "resume": say("cli.watch.resume", step=step),
        "end": say("cli.watch.end", step=step),
        "stop": say("cli.watch.stop", step=step),
        "not finite": say("cli.watch.not_finite", step=step),
    }
    return turns.get(str(event.kind), "")


def _with_figures(line: str, figures: Mapping[str, float]) -> str:
    return f"{line}   {told}" if (told := summary(figures)) else line
