"""``--status FILE`` and ``--json``: how a command stands, for the program that started it.

    {"state": "running", "phase": "training", "done": 12, "total": 80, "message": "", "exit_code": null, …}

The file is there from the first second and is replaced atomically, so it can be read at any time. ``state`` ends as
``finished``, ``stopped`` or ``failed``; if it is ``running`` and the process ``pid`` is gone, the process was killed.
"""

from __future__ import annotations

import functools
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from weitune.errors import InputError, WeituneError, first_line, refused_by_system
from weitune.files.json_files import json_bytes, json_object
from weitune.files.publish import own_partial, put_in_place, write_bytes
from weitune.progress import Phase, watching_phases
from weitune.ranks import launched, rank

PAUSE_SECONDS = 0.5
"""Progress within a phase is written this often at most."""
_TICK_SECONDS = 0.01
_WRITTEN_FOR_LAUNCHER = "WEITUNE_STATUS"
_open: list[Status] = []


class Status:
    """How a command stands, in a file if it has a ``path``; use it in a ``with`` block."""

    def __init__(self, command: str, path: Path | None, *, printed: bool = False) -> None:
        now = time.time()
        self._path, self._lock = path, threading.RLock()
        self.printed = printed
        """Whether the last state is printed, too."""
        self._written = 0.0
        self._watching = watching_phases(self.watch)
        self._borrowed = ExitStack()
        self.result: object = None
        """What the command returned."""
        self.fields: dict[str, Any] = {
            "state": "running", "command": command, "phase": "finding", "done": None, "total": None,
            "message": "", "fix": "", "message_id": "", "told": "", "exit_code": None,
            "pid": os.getpid(), "host": socket.gethostname(), "started": now, "time": now,
        }  # fmt: skip

    def watch(self, phase: Phase | None, done: int | None, total: int | None) -> None:
        """Take note of a phase, or of how far it is; both may come from any thread."""
        with self._lock:
            entered = phase is not None and phase != self.fields["phase"]
            self.fields |= {"phase": phase or self.fields["phase"], "done": done, "total": total}
            if entered or time.monotonic() - self._written >= PAUSE_SECONDS:
                self._write()

    def add(self, **fields: Any) -> None:
        """Tell more, such as the folder of the run."""
        with self._lock:
            self.fields |= fields
            self._write()

    def __enter__(self) -> Status:
        try:
            self._replace()
        except OSError as error:
            raise InputError("cli.status.not_written", path=self._path, strerror=error.strerror or error) from None
        _open.append(self)
        self._watching.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.__exit__(None, None, None)
        _open.remove(self)
        ending = _ending(error, self.result)
        with self._lock, self._borrowed:
            self.fields |= ending
            if told := self._told_by_another_process(ending["exit_code"]):
                self.fields = told
            else:
                self._write()
        if self.printed:
            click.echo(json_bytes(self.fields, indent=1), nl=False)

    def hand_over(self) -> dict[str, str]:
        """Return the environment variable by which a process that this one starts writes how it stands."""
        with self._lock:
            if self._path is None:
                folder = self._borrowed.enter_context(tempfile.TemporaryDirectory(prefix="weitune-status-"))
                self._path = Path(folder) / "status.json"
            self._write()
            return {_WRITTEN_FOR_LAUNCHER: str(self._path.absolute())}

    def _told_by_another_process(self, exit_code: int) -> dict[str, Any]:
        """Return how a process that this one started ended if it has written that, and nothing otherwise."""
        written = json_object(self._path) if self._path else {}
        other = written.get("pid", self.fields["pid"]) != self.fields["pid"]
        return written if other and written.get("exit_code") == exit_code else {}

    def _write(self) -> None:
        with suppress(OSError):  # the disk is full; the command itself may not need it
            self._replace()

    def _replace(self) -> None:
        self._written, self.fields["time"] = time.monotonic(), time.time()
        if self._path is not None:
            partial = own_partial(self._path)
            write_bytes(partial, json_bytes(self.fields, indent=1))
            put_in_place(partial, self._path)


def tell(**fields: Any) -> None:
    """Add to the status of the command at hand, if somebody reads one."""
    for status in _open:
        status.add(**fields)


def began() -> float:
    """Return when the command at hand began, in seconds since the epoch; now, if nobody reads its status.

    Whoever sees the status may make a stop file at once, whose time may lag by a tick of the system's clock.
    """
    return float(_open[0].fields["started"]) - _TICK_SECONDS if _open else time.time()


def hand_over() -> dict[str, str]:
    """Return environment variables with which a process that this one starts tells this one how it stands."""
    return _open[0].hand_over() if _open else {}


def status_options(*, json: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command ``--status FILE``, and ``--json`` unless it has its own."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def told(*args: Any, status_file: Path | None, outcome_json: bool = False, **options: Any) -> Any:
            if rank() != 0 or not (status_file or outcome_json):
                return function(*args, **options)
            command = click.get_current_context().command_path.partition(" ")[2]
            launcher = os.environ.get(_WRITTEN_FOR_LAUNCHER) if launched() else None  # which prints the outcome
            path = Path(launcher) if launcher else status_file
            with Status(command, path, printed=outcome_json and not launcher) as status:
                status.result = function(*args, **options)
                return status.result

        if json:
            about = "Print the outcome as one JSON object."
            told = click.option("--json", "outcome_json", is_flag=True, help=about)(told)
        kind, about = click.Path(path_type=Path, dir_okay=False), "Keep a JSON file that tells programs how it stands."
        return click.option("--status", "status_file", type=kind, metavar="FILE", help=about)(told)

    return decorate


def _ending(error: BaseException | None, result: object) -> dict[str, Any]:
    """Return the state, exit code and texts with which a command ends."""
    error = error and (refused_by_system(error) or error)
    if error is None:
        code = result if isinstance(result, int) else 0
        return {"state": _state(code), "exit_code": code}
    if isinstance(error, WeituneError):
        texts = {"message": error.message, "fix": error.fix, "message_id": error.message_id}
        return {"state": _state(error.exit_code), "exit_code": error.exit_code, **texts, "told": "".join(str(error))}
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return {"state": "stopped", "exit_code": 130}
    if isinstance(error, click.ClickException):
        message = error.format_message()
        return {"state": "failed", "exit_code": error.exit_code, "message": error.message, "told": "".join(message)}
    return {"state": "failed", "exit_code": 1, "message": first_line(error), "told": first_line(error)}


def _state(exit_code: int) -> str:
    return {0: "finished", 130: "stopped"}.get(exit_code, "failed")
