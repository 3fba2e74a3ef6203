"""The callbacks through which work reports its progress, its phase and its notes to whoever started it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

Progress = Callable[[int, "int | None"], None]
"""Called with the units done and the units in all, which may be unknown (None)."""
Stage = Callable[[str], Progress]
"""Called with the title of the next stage; returns the callback for the progress of that stage."""

Note = Callable[[str], None]
"""Called with a line for the user."""

Phase = Literal["finding", "downloading", "reading", "loading", "training", "evaluating", "writing"]
"""What a program is at work on: finding and downloading a model, reading rows, loading weights, and so on."""


class PhaseWatch(Protocol):
    """Called when work enters a phase or gets on in it, perhaps from another thread."""

    def __call__(self, phase: Phase | None, done: int | None, total: int | None) -> None:
        """Take note of ``phase``, or of progress in the one at hand (None). Downloads are counted in bytes."""


_watches: list[PhaseWatch] = []


@contextmanager
def watching_phases(watch: PhaseWatch) -> Iterator[None]:
    """Have ``watch`` called with every phase of this process while the block runs."""
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)


def enter_phase(phase: Phase, done: int | None = None, total: int | None = None) -> None:
    """Tell those who watch that work is in ``phase``."""
    for watch in _watches:
        watch(phase, done, total)


def get_on(done: int, total: int | None) -> None:
    """Tell those who watch how far the phase at hand is."""
    for watch in _watches:
        watch(None, done, total)
