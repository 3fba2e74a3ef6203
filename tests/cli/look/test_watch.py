"""``weitune watch`` shows what a run's events say, follows them as they come, and ends when the run does."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.limits import HANG_SECONDS
from tests.tiny import save_tiny_run
from weitune import cli
from weitune.cli.look.watch import follow
from weitune.cli.shared.dashboard import Dashboard, short
from weitune.run.events import typed_event

START = {"event": "start", "step": 0, "steps": 40}
END = {"event": "end", "step": 40}


def step(number: int, loss: Any = 2.0) -> dict[str, Any]:
    return {
        "event": "step", "step": number, "loss": loss, "learning_rate": 1e-4, "tokens_per_second": 123.4,
        "step_seconds": 10.0, "memory_bytes": 4_330_000_000,
    }  # fmt: skip


def validation(number: int, loss: float) -> dict[str, Any]:
    return {
        "event": "validation", "step": number, "loss": loss, "perplexity": 9.0,
        "samples": [{"prompt": "你是谁？", "answer": "我是\n甄嬛。[red]"}],
    }  # fmt: skip


def drawn(*events: dict[str, Any]) -> str:
    dashboard = Dashboard()
    for event in events:
        dashboard.feed(typed_event(event))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(dashboard)
    return capture.get()


def test_the_dashboard_shows_everything() -> None:
    shown = drawn(START, validation(0, 3.0), step(1, 4.0), step(2, 2.0), validation(2, 3.5))
    for fact in (
        "2/40", "10 s/step", "6 min 20 s left", "loss 2.000 (smoothed 2.947)", "lr 1.00e-04", "123 tokens/s", "4.33 GB",
        "step 2: validation loss 3.5000", "best 3.0000 at step 0", "你是谁？  →  我是 甄嬛。[red]",
    ):  # fmt: skip
        assert fact in shown, fact


def test_events_that_are_read_again_are_shown_once() -> None:
    once = drawn(START, validation(0, 3.0), step(1, 4.0))
    assert drawn(START, validation(0, 3.0), step(1, 4.0), step(2, 2.0), validation(2, 2.5), START,
                 validation(0, 3.0), step(1, 4.0)) == once  # fmt: skip


FIGURES = {"rewards/chosen": -0.25, "rewards/rejected": -1.0, "rewards/margins": 0.75, "rewards/accuracies": 0.875}


def test_the_dashboard_shows_rewards_and_says_when_chosen_answers_become_less_likely() -> None:
    held = [{**validation(k, 0.6), **FIGURES, "logps/chosen": -50.0 - k} for k in (0, 4)]
    shown = " ".join(drawn(START, held[0], {**step(1), **FIGURES}, held[1]).split())
    for fact in (
        "chosen -0.250 rejected -1.000 margin 0.750 right 88%", "perplexity of chosen answers 9.00",
        "have become less likely than they were: by 4.0 nats an answer",
    ):  # fmt: skip
        assert fact in shown, fact
    assert "less likely" not in drawn(START, held[0], {**step(1), **FIGURES})
    assert "chosen" not in drawn(START, validation(0, 3.0), step(1, 4.0))


def test_before_the_first_step_and_with_a_loss_that_is_no_number() -> None:
    assert "0/40" in drawn(START)
    assert "loss nan" in drawn(START, step(1, "nan"))


def test_why_it_ended() -> None:
    assert "stopped by SIGTERM" in drawn(START, {"event": "stop", "step": 3, "reason": "SIGTERM"})
    resumed = drawn(
        START, {"event": "stop", "step": 3, "reason": "SIGTERM"}, {"event": "resume", "step": 3, "steps": 40}
    )
    assert "stopped" not in resumed


def test_short_texts() -> None:
    assert len(short("x" * 500)) == 100
    assert short(None) == ""


def write(run: Path, *events: dict[str, Any]) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write("".join(json.dumps(event) + "\n" for event in events))


def test_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_tiny_run(tmp_path / "run")
    write(run, START, step(1))
    assert cli.main(["watch", str(run), "--once"]) == 0
    assert "1/40" in capsys.readouterr().out


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_tiny_run(tmp_path / "run")
    write(run, START, step(1), validation(1, 3.0), END)
    assert cli.main(["watch", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["start at step 0", "step 1", "step 1", "end at step 40"]


def test_lines_tell_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_tiny_run(tmp_path / "run")
    write(run, START, {**step(1), **FIGURES}, END)
    assert cli.main(["watch", str(run)]) == 0
    assert "margin 0.750   right 88%" in capsys.readouterr().out


def test_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert "recipe.yaml" in capsys.readouterr().err


def test_events_are_followed_as_they_come(tmp_path: Path) -> None:
    """Half a line waits for its rest, and a file that a resumed run has shortened is read anew."""
    path = tmp_path / "events.jsonl"
    seen: list[Any] = []
    dashboard = Dashboard()
    follower = threading.Thread(target=lambda: seen.extend(follow(tmp_path, dashboard)))
    whole = json.dumps(step(1)) + "\n"
    path.write_text(json.dumps(START) + "\n" + whole[:20])
    follower.start()
    wait_for(lambda: dashboard.steps == 40)
    with path.open("a") as file:
        file.write(whole[20:] + json.dumps(step(2)) + "\n" + json.dumps(step(3)) + "\n")
    wait_for(lambda: dashboard.step == 3)
    path.write_text(json.dumps(START) + "\n" + whole)
    wait_for(lambda: dashboard.step == 1)
    write(tmp_path, END)
    follower.join(timeout=HANG_SECONDS)
    assert not follower.is_alive()
    assert dashboard.ended == "finished"


def wait_for(condition: Any) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_run_that_was_not_trained_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as one that was merged from others."""
    run = save_tiny_run(tmp_path / "my run")
    for once in ([], ["--once"]):
        assert cli.main(["watch", str(run), *once]) == 2
        assert f"weitune chat '{run}'" in " ".join(capsys.readouterr().err.split())
