"""Answers of a model to prompts, kept in the cache as far as a run has needed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from weitune.data.conversation import Example
from weitune.data.keep.kept import KeptExamples
from weitune.files.cache import read_cached, store_cached
from weitune.training.keep.answering import Answering


class CachedAnswers:
    """Answers in the order in which all runs ask: a run that needs more of them goes on where others have ended."""

    def __init__(self, answering: Answering, place: Path | None) -> None:
        """Read the answers in ``place``; with None there is no cache."""
        self._answering, self._place = answering, place
        read = None if place is None else read_cached(place, KeptExamples.from_bytes)
        self._known = [] if read is None else [read[i] for i in range(len(read))]
        self._asked = 0
        self._new = False

    def __call__(self, prompts: Sequence[Sequence[int]], learned: Callable[[int], object]) -> list[Example]:
        """Return the next ``prompts`` with their answers, as :class:`Answering` does."""
        start, stop = self._asked, self._asked + len(prompts)
        self._asked = stop
        found = self._known[start:stop]
        if len(found) < len(prompts):
            found = self._answering(prompts, learned)
            self._known[start:] = found
            self._new = True
        else:
            for example in found:
                learned(example.supervised if self._answering.ended(example) else 0)
        return found

    def store(self) -> None:
        """Write the answers to the cache if there are new ones; without a cache they only cost time."""
        if self._new and self._place is not None:
            store_cached(self._place, KeptExamples(self._known).to_bytes())
