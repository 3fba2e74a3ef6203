"""``weitune export`` as it is typed: what it prints, where it writes, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.export.runs import save_run
from weitune import Run
from weitune.cli import main
from weitune.export import fit
from weitune.export import run as export_module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return save_run(tmp_path_factory.mktemp("typed") / "run", "qwen2")


def test_a_verdict_is_printed_and_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--format", "merged"]) == 0
    shown = capsys.readouterr()
    folder = run.path / "export" / "merged"
    assert shown.out == ""
    assert "on 4 prompts:" in shown.err
    for name in ("tokens", "answers", "logprobs", "stop"):
        assert f"  ok      {name}" in shown.err
    assert shown.err.endswith(f"done: {folder}\n")
    verdict = json.loads((folder / "verification.json").read_text())
    assert verdict["verdict"] == "passed"
    assert {"engine", "prompts", "bounds", "checks", "notes"} <= verdict.keys()


def test_a_failed_verdict_names_the_first_difference(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_module, "_write", _without_adapter(export_module._write))
    assert main(["export", str(run.path), "--format", "merged", "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "  FAILED  answers" in shown
    assert "error: the export differs from base + adapter:\n" in shown
    assert "token 1 of the answer is " in shown
    assert f"It is kept in '{tmp_path / 'out.failed'}'" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_a_file_that_nothing_could_be_measured_for_is_told_of(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "choose_prompts", lambda source, count: ([], []))
    out, status = tmp_path / "out", tmp_path / "status.json"
    command = ["export", str(run.path), "--format", "gguf", "--type", "Q8_0", "--no-verify", "--output", str(out)]
    assert main([*command, "--status", str(status)]) == 0
    told = "the file was quantized from its weights alone"
    assert told in " ".join(capsys.readouterr().err.split())
    assert told in json.loads((out / "weitune.json").read_text())["notes"][0]
    assert told in status.read_text(encoding="utf-8")


def _without_adapter(write):  # type: ignore[no-untyped-def]
    def spoiled(folder, tuned, order, stage):  # type: ignore[no-untyped-def]
        for update in tuned.adapter.updates.values():
            update.b.zero_()
        return write(folder, tuned, order, stage)

    return spoiled


@pytest.mark.parametrize(
    ("format_", "files"),
    [("gguf", {"run-Q4_0.gguf"}), ("gguf-adapter", {"run-adapter.gguf"}), ("ollama", {"run-Q4_0.gguf", "Modelfile"})],
)
def test_other_formats_without_comparison(format_: str, files: set[str], run: Run, tmp_path: Path) -> None:
    options = ["--format", format_, "--type", "q4_0", "--no-verify", "--output", str(tmp_path / "out")]
    assert main(["export", str(run.path), *options]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | {"weitune.json"}


def test_channels_are_left_as_they_are_on_demand(run: Run, tmp_path: Path) -> None:
    for name, options in (("even", []), ("as-it-was", ["--no-smooth"])):
        asked = ["export", str(run.path), "--format", "gguf", "--no-verify", "--output", str(tmp_path / name), *options]
        assert main(asked) == 0
        assert json.loads((tmp_path / name / "weitune.json").read_text())["smoothed"] is (name == "even")


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        (["no-such-folder", "--format", "merged"], "there is no folder 'no-such-folder'", "weitune train"),
        (["{run}", "--format", "onnx"], "'onnx' is not one of", ""),
        (["{run}"], "Missing option '--format'", ""),
        (["{run}", "--format", "merged", "--checkpoint", "base"], "the base has no adapter to export", ""),
        (["{run}", "--format", "merged", "--output", "{run}/x", "--checkpoint", "7"], "has no checkpoint 7", "'last'"),
        (["{run}", "--format", "merged", "--output", "{run}"], "is not an export of weitune", "--output"),
        (["{run}", "--format", "gguf", "--type", "Q3_K"], "'Q3_K' is not one of", ""),
    ],
)
def test_wrong_input_exits_with_2_and_a_cure(
    arguments: list[str], message: str, fix: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.path.rglob("*"))
    assert main(["export", *(part.format(run=run.path) for part in arguments)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert fix in shown
    assert "Traceback" not in shown
    assert sorted(run.path.rglob("*")) == before


def test_an_export_is_replaced_only_on_demand(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["export", str(run.path), "--format", "merged", "--no-verify", "--output", str(tmp_path / "out")]
    assert main(again) == 0
    assert main(again) == 2
    assert "already holds an export" in capsys.readouterr().err
    assert main([*again, "--force"]) == 0
