"""The answers that have been given so far, in a hidden file beside the one that they are for.

    {"settings": {"model": …, "temperature": "0.8"}}        answers under other settings are refused
    {"number": 3, "text": "…", "stopped": true}             in the order in which they finish
    {"number": 0, "text": null, "stopped": false}           the prompt leaves no room for an answer
    {"number": 1, "text": "", "stopped": true, "calls": [{"name": …, "arguments": {…}, "id": …}]}

A line that was torn by a kill or a power cut is dropped, and its row is answered again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from weitune.errors import InputError
from weitune.files.json_files import json_text, record_from
from weitune.files.locks import acquire
from weitune.files.publish import BINARY, hidden
from weitune.messages import say


@dataclass(frozen=True, slots=True)
class Said:
    """One answer; ``text`` is None if there could be none."""

    number: int
    text: str | None
    stopped: bool
    """Whether it ended by itself, not at its longest length."""
    calls: Sequence[Mapping[str, Any]] = ()
    """The function calls in it, each with the fields of a :class:`.ToolCall`."""


class PartialAnswers:
    """The answers for ``target`` that were given under ``settings``; use it in a ``with`` block."""

    def __init__(self, target: Path, settings: Mapping[str, str], *, restart: bool = False) -> None:
        """Read what an earlier command has left, or begin.

        Raises InputError if that had other settings, unless this is to ``restart``, if another process writes them, or
        if nothing can be written here.
        """
        self.path = hidden(target, "partial")
        self.said: dict[int, Said] = {}
        try:
            self._stream: IO[bytes] = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | BINARY, 0o666), "r+b")
        except OSError as error:
            raise self._not_written(error) from error
        try:
            if acquire(self._stream.fileno()) is False:
                raise InputError("generate.answer_file.in_use", target=target)
            self._stream.seek(0)
            whole = self._read(self._stream.read(), settings, restart)
            self._stream.seek(whole)
            self._stream.truncate()
            if not whole:
                self._write({"settings": dict(settings)})
        except InputError:
            self._stream.close()
            raise
        except OSError as error:
            self._stream.close()
            raise self._not_written(error) from error

    def __enter__(self) -> PartialAnswers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError) if error is not None else nullcontext():  # it would hide what went wrong
            self._stream.close()

    def add(self, said: Said) -> None:
        """Keep an answer. Raises InputError if the system refuses."""
        try:
            self._write(asdict(said))
        except OSError as error:
            raise self._not_written(error) from error
        self.said[said.number] = said

    def delete(self) -> None:
        """Delete the file, after its answers have been written elsewhere."""
        self._stream.close()
        self.path.unlink(missing_ok=True)

    def _read(self, contents: bytes, settings: Mapping[str, str], restart: bool) -> int:
        """Read the answers and return the length, in bytes, of all whole lines; 0 to begin."""
        header, *lines = contents.splitlines(keepends=True) or [b""]
        earlier = _whole(header).get("settings")
        if not isinstance(earlier, dict):
            return 0
        changed = [name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)]
        if changed and restart:
            return 0
        if changed:
            changes = "\n  ".join(_change(name, earlier.get(name), settings.get(name)) for name in changed)
            raise InputError("generate.answer_file.other_settings", path=self.path, changes=changes)
        length = len(header)
        for line in lines:
            try:
                said = record_from(Said, _whole(line))
            except TypeError:
                break
            self.said[said.number] = said
            length += len(line)
        return length

    def _write(self, value: object) -> None:
        self._stream.write(json_text(value).encode() + b"\n")
        self._stream.flush()

    def _not_written(self, error: OSError) -> InputError:
        return InputError("generate.answer_file.not_written", path=self.path, strerror=error.strerror or error)


def _whole(line: bytes) -> dict[str, object]:
    """Return the object in ``line``, an empty one if the line is torn."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _change(name: str, earlier: str | None, now: str | None) -> str:
    return say("generate.answer_file.change", name=name, earlier=str(earlier)[:60], now=str(now)[:60])
