"""Figures of preferences in events, and when the chosen answers are said to become less likely."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from weitune.run.events import Event, Step, Validation, typed_event
from weitune.run.preference_figures import ChosenAnswers, fields_of, summary


@dataclass
class Record:
    step: int = 3
    figures: dict[str, float] = field(default_factory=dict)


def events(*lines: dict[str, Any]) -> ChosenAnswers:
    chosen = ChosenAnswers()
    for number, line in enumerate(lines):
        chosen.add(typed_event({"step": number, **line}))
    return chosen


def test_figures_stand_beside_the_other_fields_of_an_event() -> None:
    line = fields_of(Record(figures={"rewards/chosen": 0.25, "kl": 0.0}))
    assert line == {"step": 3, "rewards/chosen": 0.25, "kl": 0.0}
    event = typed_event({"event": "step", **line, "rewards/rejected": "text"})
    assert isinstance(event, Step)
    assert event.figures == {"rewards/chosen": 0.25, "kl": 0.0}
    held = typed_event({"event": "validation", "rewards/accuracies": 0.5})
    assert isinstance(held, Validation)
    assert summary(held.figures) == "right 50%"
    assert summary({}) == ""
    assert (
        summary({"logps/chosen": -50.25, "logps/rejected": -60.0}) == "log-probabilities: chosen -50.2   rejected -60.0"
    )


def test_a_fall_of_held_out_answers_is_told_with_what_to_do() -> None:
    held = [{"event": "validation", "logps/chosen": value} for value in (-50.0, -49.0, -53.5)]
    note = events(*held).note()
    assert "less likely" in note
    assert "3.5 nats" in note
    assert "preference.sft_weight" in note
    assert not events(*held[:2]).note()
    assert not events(held[2]).note()


def test_without_held_out_answers_the_gain_over_the_reference_tells() -> None:
    falling = [{"event": "step", "logps/chosen_gain": -0.1 * k} for k in range(30)]
    assert "less likely" in events(*falling).note()
    assert not events(*falling[:6]).note()
    rising = [{"event": "step", "logps/chosen_gain": 0.1 * k} for k in range(30)]
    assert not events(*rising).note()


def test_without_a_reference_first_and_last_steps_tell_if_it_is_no_chance() -> None:
    noise = [3.0, -2.0, 0.5, -1.5]
    steps = [{"event": "step", "logps/chosen": -50.0 - 0.3 * k + noise[k % 4]} for k in range(32)]
    note = events(*steps).note()
    assert "less likely" in note
    assert "7.2 nats" in note
    assert not events(*steps[:12]).note()  # too few
    assert not events(*({"event": "step", "logps/chosen": -50.0 + 9 * noise[k % 4] - k / 20} for k in range(40))).note()
    assert not events(*({"event": "step", "logps/chosen": -50.0 + k} for k in range(40))).note()


def test_held_out_answers_count_more() -> None:
    lines = [
        {"event": "validation", "logps/chosen": -50.0},
        {"event": "step", "logps/chosen_gain": -9.0},
        {"event": "validation", "logps/chosen": -49.0},
    ]
    assert not events(*lines).note()


def test_a_run_without_preferences_says_nothing() -> None:
    chosen = events({"event": "step", "loss": 1.0}, {"event": "validation", "loss": 1.0})
    chosen.add(Event("end"))
    assert chosen.change is None
    assert not chosen.note()
