"""``weitune train``: what a user gives, right or wrong, and what is on the disk afterwards."""

from __future__ import annotations

import json
import os
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from weitune import cli
from weitune.cli.train import launch

ROWS = [
    {"instruction": "Who are you?", "input": "", "output": "I am the keeper of the garden."},
    {"instruction": "What is the capital of France?", "input": "", "output": "The capital of France is Paris."},
    {"instruction": "Tell me a story.", "input": "about the sea", "output": "Once there was a fisherman."},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def write_rows(folder: Path, rows: object) -> str:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


def train(model: Path | str, data: str, output: Path, *more: str) -> int:
    return cli.main(["train", "--model", str(model), "--data", data, "--output", str(output), "--device", "cpu", *more])


def test_a_run_from_options_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    status = train(
        model, write_rows(tmp_path, ROWS * 4), output, "--system", "Be brief.", "--train.batch_size", "4",
        "--train.epochs", "2", "--train.checkpoint_every", "2", "--lora.r", "4",
    )  # fmt: skip
    told = capsys.readouterr().err
    assert status == 0, told
    assert "trainable parameters: " in told
    assert f"weitune chat {output}" in told
    assert {entry.name for entry in output.iterdir() if not entry.name.startswith((".", "lock"))} == {
        "recipe.yaml", "environment.json", "data.json", "events.jsonl", "outcome.json", "adapter", "report.html",
        "checkpoint-2", "checkpoint-4", "checkpoint-6",
    }  # fmt: skip
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    wanted = {"time", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "step_seconds"}
    assert all(wanted <= event.keys() and event["memory_bytes"] > 0 for event in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for adapter in ("adapter", "checkpoint-4"):  # plain PEFT folders, as they are
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), output / adapter)

    assert cli.main(["chat", str(output), "--prompt", "Who are you?", "--max-new-tokens", "8", "--device", "cpu"]) == 0


def test_an_option_wins_over_a_recipe_file(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    data = write_rows(tmp_path, ROWS)
    recipe.write_text(f"model: {model}\ndata: {data}\nlora:\n  r: 2\ntrain:\n  max_steps: 1\n")
    output = tmp_path / "run"
    assert cli.main(["train", str(recipe), "--lora.r", "3", "--output", str(output), "--device", "cpu"]) == 0
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["r"] == 3


def missing_file(folder: Path) -> str:
    return str(folder / "nothing.json")


def empty_file(folder: Path) -> str:
    (folder / "rows.json").write_text("")
    return str(folder / "rows.json")


def not_json(folder: Path) -> str:
    (folder / "rows.json").write_text('[{"instruction": "hi", "output": oops}]')
    return str(folder / "rows.json")


def no_output(folder: Path) -> str:
    return write_rows(folder, [ROWS[0], {"instruction": "Who are you?", "input": ""}])


def null_field(folder: Path) -> str:
    return write_rows(folder, [ROWS[0], {**ROWS[1], "output": None}])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (missing_file, ["nothing.json", "Check the path"]),
        (empty_file, ["rows.json", "empty file"]),
        (not_json, ["rows.json", "column"]),
        (no_output, ["rows.json", "row 2", "output"]),
        (null_field, ["rows.json", "row 2", "output", "null"]),
    ],
)
def test_wrong_data(
    make: Callable[[Path], str], told: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert train(model, make(tmp_path), output) == 2
    expect_message(capsys, told)
    assert not output.exists()
    assert not list(tmp_path.glob(".run*"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--lora.rank", "4"], ["--lora.rank", "--lora.r"]),
        (["--lora.r", "four"], ["lora.r", "whole number", "four"]),
        (["--train.precision", "fp8"], ["train.precision", "fp8", "bf16"]),
        (["--lora.target_modules", "q_proj,wq"], ["'wq'", "q_proj", "down_proj"]),
        (["--tokens.max_length", "2", "--tokens.truncation", "cut"], []),
        (["--device", "cuda:77"], ["cuda:77"]),
    ],
)
def test_wrong_options(
    options: list[str], told: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert train(model, write_rows(tmp_path, ROWS), output, *options) == 2
    expect_message(capsys, told)
    assert not output.exists()


def test_an_unknown_key_in_a_recipe_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {model}\ndata: {write_rows(tmp_path, ROWS)}\nlora:\n  rnak: 2\n")
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "run")]) == 2
    expect_message(capsys, ["lora.rnak", "lora.r"])


def test_wrong_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_rows(tmp_path, ROWS), tmp_path / "run"
    (tmp_path / "empty").mkdir()
    assert train(tmp_path / "empty", data, output) == 2
    expect_message(capsys, ["config.json", "empty"])
    assert train(tmp_path / "nowhere", data, output) == 2
    expect_message(capsys, ["nowhere", "hub id"])
    assert train("builtin:nothing", data, output) == 2
    expect_message(capsys, ["nothing", "smollm2-135m"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    assert train(tmp_path / "broken", data, output) == 2
    expect_message(capsys, ["broken", "tokenizer"])
    assert not output.exists()


def test_an_output_folder_that_is_taken(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_rows(tmp_path, ROWS), tmp_path / "run"
    assert train(model, data, output, "--train.max_steps", "1") == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(model, data, output) == 2
    expect_message(capsys, ["already holds a run", f"weitune train --resume {output}"])
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert train(model, data, tmp_path / "mine") == 2
    expect_message(capsys, ["not an empty folder"])


def test_resuming_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    expect_message(capsys, [str(tmp_path), "recipe.yaml"])
    assert cli.main(["train", "--resume", str(tmp_path / "nowhere")]) == 2
    expect_message(capsys, ["nowhere"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 2
    expect_message(capsys, ["--model", "--data"])


def expect_message(capsys: pytest.CaptureFixture[str], told: list[str]) -> None:
    """Check that standard error has a message with every text of ``told``, and no traceback."""
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert [text for text in told if text not in shown.err] == [], shown.err


def test_signals_are_forwarded_and_a_closed_terminal_is_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is None:
        pytest.skip("no such signal")
    sent: list[int] = []
    process: Any = types.SimpleNamespace(poll=lambda: None, send_signal=sent.append)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what runs in the background
    try:
        with launch._forwarding_signals([process]):
            for number in (signal.SIGINT, signal.SIGTERM, hang_up):
                os.kill(os.getpid(), number)
        assert sent == [signal.SIGINT, signal.SIGTERM, signal.SIGTERM]
        monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)  # under nohup
        set_up: list[int] = []
        monkeypatch.setattr(signal, "signal", lambda number, handler: set_up.append(number))
        with launch._forwarding_signals([process]):
            assert hang_up not in set_up
            assert signal.SIGTERM in set_up
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGINT, before)


def test_devices_that_another_launcher_overrules_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main(["train", "demo", "--devices", "8"]) == 2
    assert "WORLD_SIZE says that another launcher" in capsys.readouterr().err
