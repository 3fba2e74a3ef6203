"""events.jsonl: appended line by line, whole after a tear, without a step twice after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.run.events import Event, EventLog, EventTail, SampleAnswer, Step, Validation, read_events, typed_event
from weitune.run.names import EVENTS


def write_steps(folder: Path, steps: range, keep: int | None = None) -> None:
    log = EventLog(folder, keep_steps=keep)
    for step in steps:
        log.write("step", time=log.seconds + step, step=step, loss=1 / step)
    log.close()


def steps_of(folder: Path) -> list[int]:
    return [event["step"] for event in read_events(folder) if event["event"] == "step"]


def test_it_grows_by_whole_lines(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    before = (tmp_path / EVENTS).read_bytes()
    write_steps(tmp_path, range(4, 6), keep=3)
    after = (tmp_path / EVENTS).read_bytes()
    assert after.startswith(before)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


def test_a_tear_anywhere_is_healed(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    whole = (tmp_path / EVENTS).read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for end in range(last, len(whole)):
        (tmp_path / EVENTS).write_bytes(whole[:end])
        assert steps_of(tmp_path) == [1, 2]
        write_steps(tmp_path, range(3, 5), keep=2)
        assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_lines_of_zeros_as_a_power_cut_leaves_them(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b"\0" * 300)
    assert steps_of(tmp_path) == [1, 2, 3]
    write_steps(tmp_path, range(4, 5), keep=3)
    assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_steps_to_come_are_taken_out_and_the_rest_stays(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert log.empty
    for step in (1, 2, 3):
        log.write("step", time=step, step=step)
    log.write("checkpoint", time=3.5, step=3)
    log.write("not finite", time=4.0, step=4, loss=float("nan"))
    log.close()
    log = EventLog(tmp_path, keep_steps=2)
    assert not log.empty
    assert log.seconds == 4.0
    log.close()
    found = list(read_events(tmp_path))
    assert [(event["event"], event["step"]) for event in found] == [("step", 1), ("step", 2), ("not finite", 4)]
    assert found[-1]["loss"] == "nan"


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_is_written_as_it_is(tmp_path_factory: pytest.TempPathFactory, number: float) -> None:
    folder = tmp_path_factory.mktemp("events")
    log = EventLog(folder)
    log.write("step", step=1, loss=number)
    log.close()
    line = (folder / EVENTS).read_text(encoding="utf-8")
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["loss"]
    assert str(float(found)) == str(number)


def test_events_that_come_are_read_and_those_of_a_resumed_run_from_the_start(tmp_path: Path) -> None:
    tail = EventTail(tmp_path)
    assert tail.new() == []

    def steps() -> list[int | None]:
        return [event.step for event in tail.new()]

    log = EventLog(tmp_path)
    for step in (1, 2):
        log.write("step", step=step)
    assert (steps(), steps()) == ([1, 2], [])
    resumed = EventLog(tmp_path, keep_steps=1)
    for step in (2, 3):  # before anybody looks the file is longer than it was
        resumed.write("step", step=step)
    assert (steps(), steps()) == ([1, 2, 3], [])


def test_no_file_is_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path)) == []


def test_a_line_is_read_as_an_event() -> None:
    assert typed_event({"event": "start", "time": 0.1, "step": 0, "steps": 40, "notes": []}) == Event("start", 0, 40)
    assert typed_event({"event": "step", "step": 3, "loss": 2.5, "tokens": 7}) == Step("step", 3, loss=2.5, tokens=7)
    sample = {"prompt": "a", "answer": "b", "reference": None, "stopped": True, "newer": 1}
    found = typed_event({"event": "validation", "step": 0, "loss": 3, "samples": [sample, "torn"]})
    assert found == Validation("validation", 0, loss=3, samples=(SampleAnswer("a", "b", None, True),))
    assert typed_event({"event": "not finite", "step": 4, "loss": "nan"}) == Event("not finite", 4)


def test_lines_of_older_and_newer_versions_are_read() -> None:
    assert typed_event({"event": "end", "step": 9, "newer": {"a": 1}}) == Event("end", 9)
    for kind in ("checkpoint", "newer", None, ["step"], {}):
        assert typed_event({"event": kind, "step": 2, "loss": 1.0}) == Event(kind if isinstance(kind, str) else None, 2)
    assert typed_event({}) == Event()


def test_numbers_that_are_not_finite_are_numbers() -> None:
    for number in ("nan", "inf", "-inf", float("inf")):
        found = typed_event({"event": "step", "loss": number})
        assert isinstance(found, Step)
        assert str(found.loss) == str(number)


@pytest.mark.parametrize("wrong", ["4", "x", True, None, [1], {"a": 1}, 10**400])
def test_what_is_not_of_its_type_is_left_out(wrong: object) -> None:
    numbers = ("step", "loss", "learning_rate", "tokens", "step_seconds", "memory_bytes")
    assert typed_event({"event": "step", **dict.fromkeys(numbers, wrong)}) == Step("step")
    assert typed_event({"event": "start", "step": 1.5, "steps": wrong}) == Event("start")
    samples = None if not isinstance(wrong, list) else ()
    assert typed_event({"event": "validation", "perplexity": wrong, "samples": wrong}) == Validation(
        "validation", samples=samples
    )
