"""``weitune watch``: look at a run from another terminal, or after the fact."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

_PAUSE_SECONDS = 0.5


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Show how it stands now, and exit.")
def command(run: Path, once: bool) -> None:
    """Watch the run in the folder RUN until it ends.

    Nothing of the run is touched, so Ctrl-C ends only the watching. Where standard output is no terminal, every step is
    a line.
    """
    from rich.console import Console
    from rich.live import Live

    from weitune.cli.dashboard import Dashboard
    from weitune.generate.run_folder import Run

    folder = Run(run)
    dashboard = Dashboard()
    console = Console(highlight=False)
    if once or not console.is_terminal:
        for event in folder.events() if once else follow(folder.path, dashboard):
            if once:
                dashboard.feed(event)
            elif line := plain_line(event):
                console.print(line, markup=False, soft_wrap=True)
        if once:
            console.print(dashboard)
        return
    with Live(dashboard, console=console, refresh_per_second=4):
        for _ in follow(folder.path, dashboard):
            pass


def follow(folder: Path, dashboard: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the events of a run as they come, each fed to ``dashboard`` first, until one says that the run has ended.

    A run that goes on takes repeated steps out of its file; then the file is shorter, and is read from its start.
    """
    import json

    path, position, rest = folder / "events.jsonl", 0, b""
    while True:
        size = path.stat().st_size if path.exists() else 0
        if size < position:
            position, rest = 0, b""
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                rest += file.read()
                position = file.tell()
        *lines, rest = rest.split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # torn by a crash
                continue
            if isinstance(event, dict):
                dashboard.feed(event)
                yield event
        if dashboard.ended:
            return
        time.sleep(_PAUSE_SECONDS)


def plain_line(event: Mapping[str, Any]) -> str:
    """Return an event as one line, or nothing if it says little."""
    match event.get("event"):
        case "step":
            return (
                f"step {event.get('step')}  loss {event.get('loss')}  lr {event.get('learning_rate')}  "
                f"{event.get('tokens_per_second')} tokens/s"
            )
        case "validation":
            return f"step {event.get('step')}  validation loss {event.get('loss')}"
        case "start" | "resume" | "end" | "stop" | "not finite" as kind:
            return f"{kind} at step {event.get('step')}"
        case _:
            return ""
