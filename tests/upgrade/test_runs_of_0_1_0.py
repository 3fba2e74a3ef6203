"""Runs made by weitune 0.1.0 open, answer, go on, are exported and served; README.md beside them says what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import save_tiny
from tests.upgrade.make_runs import QUESTIONS, RUNS, STOP_AFTER, train_one
from weitune import Run
from weitune.cli import main
from weitune.errors import RunError
from weitune.run.base_check import recorded_basis
from weitune.run.checkpoint import fault_of, list_checkpoints
from weitune.run.events import read_events
from weitune.training.run import resume

MADE = Path(__file__).parent / "made_by_0.1.0"
ADAPTER = Path("adapter", "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in a copy of the folder, on one thread, as the runs were made."""
    folder = Path(shutil.copytree(MADE, tmp_path / "made"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(before)


def losses(run: str | Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_events(Path(run)) if event["event"] == "step"]


@pytest.mark.parametrize("name", RUNS)
def test_it_opens_knows_its_base_and_answers_as_it_did(name: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = json.loads(Path("expected.json").read_text(encoding="utf-8"))["answers"][name]
    run = Run(name)
    assert run.recipe.system == "You are Tiny."
    assert recorded_basis(Path(name)).keys() == {"model", "tokenizer"}
    answers = [run.chat(question, max_new_tokens=12, device="cpu") for question in QUESTIONS]
    assert answers == expected
    assert [entry for entry in caplog.records if entry.name == "weitune"] == []


def test_its_checkpoints_verify_and_the_best_is_known() -> None:
    assert Run("finished").checkpoints() == [12]
    assert Run("finished").adapter_folder("best") == Path("finished", "checkpoint-12")
    assert Run("stopped").adapter_folder() == Path("stopped", f"checkpoint-{STOP_AFTER}")
    for name in ("finished", "stopped", "dora"):
        assert [fault_of(checkpoint) for checkpoint in list_checkpoints(Path(name))] == [""]


def test_a_stopped_run_goes_on_to_what_it_would_have_become(made: Path) -> None:
    """To the bit on a processor that computes as that one did, which a run from the start tells; else to rounding."""
    train_one("undisturbed", "again")
    resume("stopped", device="cpu")
    resumed, again, was = (made / run / ADAPTER for run in ("stopped", "again", "undisturbed"))
    assert [step for step, _ in losses("stopped")] == list(range(1, 13))
    if again.read_bytes() == was.read_bytes():
        assert resumed.read_bytes() == was.read_bytes()
        assert losses("stopped") == losses("undisturbed")
    ours, theirs = load_file(resumed), load_file(again)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
    for (_, loss), (_, expected) in zip(losses("stopped"), losses("undisturbed"), strict=True):
        assert loss == pytest.approx(expected, rel=1e-3)


def test_a_finished_run_stays_as_it_is_or_goes_on() -> None:
    before = Path("finished", ADAPTER).read_bytes()
    resume("finished", device="cpu")
    assert Path("finished", ADAPTER).read_bytes() == before
    resume("finished", device="cpu", overrides={"train.epochs": 5})
    assert [step for step, _ in losses("finished")] == list(range(1, 16))
    assert Path("finished", ADAPTER).read_bytes() != before


@pytest.mark.parametrize(("name", "format_"), [("finished", "merged"), ("dora", "merged"), ("stopped", "merged"),
                                               ("finished", "gguf"), ("finished", "gguf-adapter"),
                                               ("finished", "ollama"), ("dora", "gguf")])  # fmt: skip
def test_it_is_exported_with_proof(name: str, format_: str) -> None:
    if format_ != "merged":
        pytest.importorskip("xllamacpp")
    assert main(["export", name, "--format", format_, "--type", "F32", "--prompts", "3", "--output", "out"]) == 0
    assert json.loads(Path("out", "verification.json").read_text(encoding="utf-8"))["verdict"] == "passed"


def test_what_cannot_be_exported_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "dora", "--format", "gguf-adapter", "--no-verify"]) == 2
    assert "cannot hold a DoRA adapter" in capsys.readouterr().err


def test_it_is_served_evaluated_compared_and_pushed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("uvicorn")
    for arguments in (
        ["serve", "finished", "stopped", "--dry-run", "--port", "0"],
        ["eval", "finished", "--no-general", "--max-new-tokens", "2", "--device", "cpu"],
        ["compare", "finished", "stopped"],
        ["push", "finished", "--to", "me/mine", "--dry-run"],
        ["merge-adapters", "finished", "undisturbed", "--output", "both"],
    ):
        assert main(arguments) == 0, capsys.readouterr().err
        assert "has no record" not in capsys.readouterr().err
    assert recorded_basis(Path("both"))["model"] == recorded_basis(Path("finished"))["model"]


def test_another_base_in_its_place_is_refused() -> None:
    shutil.rmtree("model")
    save_tiny("model")
    with pytest.raises(RunError, match=r"model: [0-9a-f]{12}… recorded"):
        Run("finished").chat("Who are you?", max_new_tokens=1)
    with pytest.raises(RunError, match="would not be the same run"):
        resume("stopped", device="cpu")
