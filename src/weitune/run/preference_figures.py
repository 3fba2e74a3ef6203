"""The figures of preferences in a run's events, and what they say about the chosen answers.

A loss that compares two answers can fall while both become less likely (Pal et al., arXiv 2402.13228). Held-out answers
show that best, as they are the same each time; without any, the gain over the reference does; without a reference, the
answers of the first steps and of the last, if they differ by more than chance explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import sqrt
from statistics import fmean, variance
from typing import Any

from weitune.messages import say
from weitune.run.events import Event, Step, Validation, typed_event
from weitune.run.history import MovingAverage

_FALL_NATS = 1.0
"""Of an answer's log-probability, from which a fall is told: the answer is then e times less likely."""
_FEWEST_STEPS = 4
"""Of a quarter of a run, for its mean to say anything."""
_ERRORS = 3.0
"""Standard errors that a difference of two means exceeds if it is more than chance."""


def fields_of(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass ``record`` for an event, its ``figures`` beside the others."""
    tree = asdict(record)
    figures = tree.pop("figures")
    return {**tree, **figures}


def summary(figures: Mapping[str, float]) -> str:
    """Return the figures that people watch in one line; empty if there are none."""
    texts = {
        "rewards/chosen": "run.preference_figures.chosen",
        "rewards/rejected": "run.preference_figures.rejected",
        "rewards/margins": "run.preference_figures.margin",
        "rewards/accuracies": "run.preference_figures.accuracy",
        "logps/chosen": "run.preference_figures.chosen_logps",
        "logps/rejected": "run.preference_figures.rejected_logps",
        "kl": "run.preference_figures.kl",
    }
    return "   ".join(say(text, value=figures[name]) for name, text in texts.items() if name in figures)


def chosen_note(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return a sentence if the chosen answers became less likely in a run with these ``lines`` of events."""
    chosen = ChosenAnswers()
    for line in lines:
        chosen.add(typed_event(line))
    return chosen.note()


class ChosenAnswers:
    """Whether the chosen answers of a run become less likely, from its events in order."""

    def __init__(self) -> None:
        self._gain = MovingAverage()
        self._learned: list[float] = []
        self._held: list[float] = []

    def add(self, event: Event) -> None:
        match event:
            case Step():
                self._gain.add(event.figures.get("logps/chosen_gain"))
                if "logps/chosen" in event.figures:
                    self._learned.append(event.figures["logps/chosen"])
            case Validation() if "logps/chosen" in event.figures:
                self._held.append(event.figures["logps/chosen"])

    @property
    def change(self) -> float | None:
        """By how much the log-probability of an answer has changed, in nats; None if nothing tells."""
        if len(self._held) > 1:
            return self._held[-1] - self._held[0]
        return _drift(self._learned) if self._gain.value is None else self._gain.value

    def note(self) -> str:
        """Return a sentence if they have become less likely, with what to do; else nothing."""
        change = self.change
        if change is None or change > -_FALL_NATS:
            return ""
        return say("run.preference_figures.chosen_falls", nats=-change)


def _drift(values: Sequence[float]) -> float | None:
    """Return by how much the last quarter of ``values`` exceeds the first; None if that may be chance."""
    count = len(values) // 4
    if count < _FEWEST_STEPS:
        return None
    first, last = values[:count], values[-count:]
    change = fmean(last) - fmean(first)
    error = sqrt((variance(first) + variance(last)) / count)
    return change if abs(change) > _ERRORS * error else None
