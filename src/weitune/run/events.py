"""``events.jsonl``: what happened in a run, one JSON object a line, appended while it trains.

Each line is written with one call, so a kill can tear only the last one. When a run resumes from an earlier step, the
later steps are removed, since they are computed again; other events stay, such as why the run stopped.

weitune's views read :class:`Event`, :class:`Step` and :class:`Validation`; users get the lines as they are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from weitune.files.json_files import json_text
from weitune.files.publish import BINARY, publish_bytes
from weitune.run.names import EVENTS

T = TypeVar("T")
_REPEATED = frozenset({"step", "checkpoint", "validation", "samples"})
"""Events that come again when a step does."""

FIGURES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/chosen_gain",
    "kl",
)
"""Figures of preferences, in the lines of steps and validations (:mod:`weitune.training.preference.figures`)."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run."""

    kind: str | None = None
    """The line's ``event``; or "gone", from who watches a run whose process is."""
    step: int | None = None
    steps: int | None = None
    adapter_step: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Step(Event):
    """One optimizer step."""

    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    memory_bytes: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    """Those of :data:`FIGURES` that the line has."""


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """An answer of a validation."""

    prompt: str | None = None
    answer: str | None = None
    reference: str | None = None
    stopped: bool | None = None


@dataclass(frozen=True, slots=True)
class Validation(Event):
    """The validation of the model after a step; of the kind ``samples``, without held-out data, answers alone."""

    loss: float | None = None
    perplexity: float | None = None
    samples: tuple[SampleAnswer, ...] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


def typed_event(line: Mapping[str, Any]) -> Event:
    """Return a line as an event. What it lacks, and what is not of its field's type, is None."""
    kind = line.get("event")
    found = ((name, _number(line.get(name))) for name in FIGURES)
    figures = {name: value for name, value in found if value is not None}
    typed = {"step": Step, "validation": Validation, "samples": Validation}.get(str(kind), Event)
    return _typed(typed, {**line, "kind": kind, "figures": figures})


def _typed(kind: type[T], tree: Mapping[str, Any]) -> T:
    return kind(**{field.name: _READERS[field.name](tree.get(field.name)) for field in fields(kind)})  # type: ignore[arg-type]


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, float) or value in ("nan", "inf", "-inf") else _integer(value)


def _samples(value: Any) -> tuple[SampleAnswer, ...] | None:
    samples = value if isinstance(value, list | tuple) else None
    return None if samples is None else tuple(_typed(SampleAnswer, each) for each in samples if isinstance(each, dict))


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("kind", "reason", "prompt", "answer", "reference"), _string),
    **dict.fromkeys(("step", "steps", "adapter_step", "tokens", "memory_bytes"), _integer),
    **dict.fromkeys(("loss", "perplexity", "learning_rate", "grad_norm"), _number),
    **dict.fromkeys(("tokens_per_second", "step_seconds"), _number),
    "stopped": _boolean,
    "samples": _samples,
    "figures": dict,
}
"""How the field of each name is read from a line."""


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a run in order, leaving out torn lines. Yields nothing if there is no file."""
    return filter(None, map(_parsed, _lines(folder / EVENTS)))


class EventTail:
    """Reads a run's events as they come.

    A run that resumes removes the steps that it repeats: the file is then another one, and is read from its start.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._position, self._rest = folder / EVENTS, 0, b""
        self._file = 0

    def new(self) -> list[Event]:
        """Return the events that were written since the last call; half a line waits for its rest."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._file or found.st_size < self._position:
                self._file, self._position, self._rest = found.st_ino, 0, b""
            file.seek(self._position)
            self._rest += file.read()
            self._position = file.tell()
        *lines, self._rest = self._rest.split(b"\n")
        return [typed_event(event) for line in lines if (event := _parsed(line + b"\n"))]


class EventLog:
    """Append events to a run's ``events.jsonl``; times go on from where the file ends."""

    def __init__(self, folder: Path, *, keep_steps: int | None = None) -> None:
        """Open the file for appending, without the steps after ``keep_steps``, which will be computed again."""
        self._path = folder / EVENTS
        self.seconds = 0.0
        """Training time recorded so far, in seconds."""
        self._clean(math.inf if keep_steps is None else keep_steps)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY, 0o666)
        self._end = os.fstat(self._file).st_size
        self.empty = self._end == 0
        """Whether the file had no events when it was opened."""

    def _clean(self, keep_steps: float) -> None:
        kept, changed = [], False
        for line in _lines(self._path):
            event = _parsed(line)
            if event is not None:
                self.seconds = max(self.seconds, float(event.get("time", 0.0)))
            if event is None or (event.get("event") in _REPEATED and event.get("step", 0) > keep_steps):
                changed = True
            else:
                kept.append(line)
        if changed:
            publish_bytes(b"".join(kept), self._path)

    def write(self, event: str, **fields: Any) -> dict[str, Any]:
        """Append one event and return it. Numbers that are not finite become the strings "nan", "inf", "-inf".

        Raises OSError if writing fails; the file is then as it was before.
        """
        record = {"event": event, **{name: _plain(value) for name, value in fields.items()}}
        line = (json_text(record, allow_nan=False) + "\n").encode()
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)
        return record

    def flush(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line's event, or None if it is torn."""
    try:
        event = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
