"""``--status FILE`` and ``outcome.json``: what a program reads while a command works, and after it has ended."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import local_hub
from tests.limits import HANG_SECONDS
from tests.tiny import save_tiny
from weitune import is_training
from weitune.cli import main
from weitune.cli.shared.status import Status, tell
from weitune.files.json_files import json_object
from weitune.messages.language import choose_language
from weitune.model.load.locate import locate
from weitune.progress import enter_phase, get_on, watching_phases
from weitune.run.names import OUTCOME, STOP
from weitune.training.record.recorder import Recorder

ROWS = [{"instruction": f"Who are you {i}?", "input": "", "output": "I am the keeper."} for i in range(12)]
PHASES = ["finding", "downloading", "reading", "loading", "training", "evaluating", "writing"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status")
    save_tiny(folder / "model")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return folder


def training(place: Path, output: Path, *more: str) -> list[str]:
    given = ["--model", str(place / "model"), "--data", str(place / "rows.json"), "--output", str(output)]
    return ["train", *given, "--device", "cpu", "--train.batch_size", "4", *more]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return a list that gets every status as it is written, without pauses."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("weitune.cli.shared.status.PAUSE_SECONDS", 0.0)
    whole = Status._replace

    def replace(self: Status) -> None:
        whole(self)
        if self._path is not None:
            seen.append(json.loads(self._path.read_text(encoding="utf-8")))

    monkeypatch.setattr(Status, "_replace", replace)
    return seen


def test_a_run_tells_its_phases_and_its_end(place: Path, tmp_path: Path, written: list[dict[str, Any]]) -> None:
    status, output = tmp_path / "status.json", tmp_path / "run"
    more = ["--validation", "0.34", "--train.epochs", "1", "--train.evaluate_every", "1", "--status", str(status)]
    assert main(training(place, output, *more)) == 0
    first, last = written[0], written[-1]
    assert (first["state"], first["phase"], first["exit_code"]) == ("running", "finding", None)
    assert first["pid"] == os.getpid()
    assert (last["state"], last["exit_code"], last["message"], last["run"]) == ("finished", 0, "", str(output))
    seen = [told["phase"] for told in written]
    assert set(seen) == {"finding", "reading", "loading", "training", "evaluating", "writing"}
    first_of = [seen.index(phase) for phase in ("finding", "reading", "loading", "training", "writing")]
    assert first_of == sorted(first_of)
    steps = [(told["done"], told["total"]) for told in written if told["phase"] == "training"]
    assert {(1, 2), (2, 2)} <= set(steps)
    assert all(told["state"] == "running" for told in written[:-1])
    outcome = json.loads((output / OUTCOME).read_text(encoding="utf-8"))
    assert (outcome["state"], outcome["exit_code"], outcome["step"], outcome["steps"]) == ("finished", 0, 2, 2)


def test_a_wrong_recipe_is_told_with_its_fix_in_english_and_for_people(place: Path, tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    arguments = training(place, tmp_path / "run", "--train.epochs", "x", "--status", str(status))
    assert main(["--language", "zh", *arguments]) == 2
    choose_language(None)
    told = json.loads(status.read_text(encoding="utf-8"))
    assert (told["state"], told["exit_code"], told["message_id"]) == ("failed", 2, "recipe.load.invalid")
    assert "train.epochs: must be a whole number; found 'x'" in told["message"]
    assert told["fix"] == "See docs/recipe.md for every key."
    assert "必须是整数" in told["told"]
    assert not (tmp_path / "run").exists()


def test_a_wrong_use_and_a_bug_are_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status.json"
    assert main(["train", "--status", str(status)]) == 2
    told = json.loads(status.read_text(encoding="utf-8"))
    assert (told["state"], told["exit_code"]) == ("failed", 2)
    assert told["message"].startswith("Give a recipe")

    def broken(*_: object) -> None:
        raise RuntimeError("this cannot be")

    monkeypatch.setattr("weitune.recipe.load.load_recipe", broken)
    assert main(["train", "demo", "--status", str(status)]) == 1
    told = json.loads(status.read_text(encoding="utf-8"))
    assert (told["state"], told["exit_code"], told["message"]) == ("failed", 1, "this cannot be")


def test_what_the_system_refuses_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/srv/others/rows.json")

    monkeypatch.setattr("weitune.recipe.load.load_recipe", refused)
    status = tmp_path / "status.json"
    assert main(["train", "demo", "--status", str(status)]) == 2
    told = json.loads(status.read_text(encoding="utf-8"))
    assert (told["exit_code"], told["message_id"]) == (2, "errors.refused_by_system")
    shown = capsys.readouterr().err
    assert "refused access to '/srv/others/rows.json': Permission denied" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("killed", [False, True], ids=["finished", "killed"])
def test_the_outcome_of_several_processes_is_printed_once(
    killed: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = subprocess.Popen

    def popen(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = whole(*args, **options)
        if killed:
            process.kill()
        return process

    monkeypatch.setattr("weitune.cli.train.launch.subprocess.Popen", popen)
    run = tmp_path / "run"
    code = main(training(place, run, "--train.max_steps", "1", "--devices", "2", "--json"))
    told = json.loads(capfd.readouterr().out)
    assert told["exit_code"] == code == (1 if killed else 0)
    assert (told["state"], told.get("run")) == (("failed", None) if killed else ("finished", str(run)))


def test_a_status_that_cannot_be_written_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo", "--status", str(tmp_path / "none" / "status.json")]) == 2
    assert "With --status, name a file in a folder that you may write to." in capsys.readouterr().err


def test_a_full_disk_ends_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Status("train", tmp_path / "status.json"):
        monkeypatch.setattr("weitune.cli.shared.status.write_bytes", full)
        enter_phase("reading")
        tell(run="x")
    assert json_object(tmp_path / "status.json")["phase"] == "finding"


def test_the_other_commands_tell_and_print_their_outcome(
    place: Path, tmp_path: Path, written: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows, run = str(place / "model"), str(place / "rows.json"), tmp_path / "run"
    assert main(training(place, run, "--train.epochs", "1", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(run)

    def told(*arguments: str) -> dict[str, Any]:
        written.clear()
        assert main([*arguments, "--status", str(tmp_path / "status.json")]) == 0
        assert {each["phase"] for each in written} <= set(PHASES)
        return written[-1]

    answers = tmp_path / "answers.jsonl"
    last = told("data", "answer", rows, "--model", model, "--max-new-tokens", "4", "--limit", "3", "-o", str(answers))
    assert (last["command"], last["written"], last["file"]) == ("data answer", 3, str(answers))
    assert {"reading", "loading", "writing"} <= {each["phase"] for each in written}
    assert (3, 3) in {(each["done"], each["total"]) for each in written if each["phase"] == "writing"}

    last = told("export", str(run), "--format", "merged", "--prompts", "2")
    assert last["verification"]["verdict"] == "passed"
    assert {"writing", "evaluating"} <= {each["phase"] for each in written}

    last = told("eval", str(run), "--data", rows, "--limit", "2", "--no-general", "--max-new-tokens", "4")
    assert last["folder"] == str(run)
    assert {"loading", "evaluating", "writing"} <= {each["phase"] for each in written}

    given = ["--model", model, "--data", rows, "--device", "cpu", "--train.batch_size", "4", "--train.epochs", "1"]
    last = told("tune", *given, "--output", str(tmp_path / "search"))
    assert last["best"]["learning_rate"] > 0
    assert {"reading", "loading", "training"} <= {each["phase"] for each in written}

    capsys.readouterr()
    assert main(["compare", str(run), str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["steps"]


def test_a_download_is_counted_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = save_tiny(tmp_path / "model")
    seen: list[tuple[int, int | None]] = []

    def watch(phase: str | None, done: int | None, total: int | None) -> None:
        if phase == "downloading" and done is not None:
            seen.append((done, total))

    with local_hub() as hub, watching_phases(watch):
        hub.add("someone/tiny", folder)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        files = locate("someone/tiny")
    bytes_here = sum(path.stat().st_size for path in files.path.iterdir())
    assert max(done for done, _ in seen) == bytes_here
    assert max(total or 0 for _, total in seen) == bytes_here


def started(place: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    arguments = training(place, output, "--train.epochs", "20000", *more)
    command = [sys.executable, "-m", "weitune", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until(ready: Any) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def step_of(status: Path) -> int:
    told = json_object(status)
    return (told.get("done") or 0) if told.get("phase") == "training" else 0


@pytest.fixture
def process(place: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    running = started(place, tmp_path / "run", "--status", str(tmp_path / "status.json"))
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def test_a_run_is_alive_until_it_is_killed_and_its_files_stay_whole(
    process: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, run = tmp_path / "status.json", tmp_path / "run"
    torn: list[str] = []
    ended = threading.Event()

    def read() -> None:  # as a program does: the file is never half written
        while not ended.is_set():
            if status.exists():
                try:
                    json.loads(status.read_text(encoding="utf-8"))
                except ValueError as error:
                    torn.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: step_of(status) > 2)
    assert is_training(run)
    assert main(["watch", str(run), "--alive"]) == 0
    assert json_object(run / OUTCOME)["state"] == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    ended.set()
    reader.join()
    assert torn == []
    told = json_object(status)
    assert (told["state"], told["pid"], told["exit_code"]) == ("running", process.pid, None)
    assert not is_training(run)
    assert main(["watch", str(run), "--alive"]) == 4
    capsys.readouterr()
    assert main(["watch", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["alive"], shown["outcome"]["state"]) == (False, "running")
    assert shown["step"] > 2


def test_a_stop_file_ends_a_run_in_order(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    status, run = tmp_path / "status.json", tmp_path / "run"
    until(lambda: step_of(status) > 0)
    (run / STOP).touch()
    assert process.wait(HANG_SECONDS) == 130
    assert not (run / STOP).exists()
    told, outcome = json_object(status), json_object(run / OUTCOME)
    assert (told["state"], told["exit_code"], outcome["state"], outcome["exit_code"]) == ("stopped", 130) * 2
    assert told["message_id"] == outcome["message_id"] == "training.run.stopped"
    assert "stopped by the file 'stop' after step" in outcome["message"]
    assert (run / f"checkpoint-{outcome['step']}").is_dir()


def test_a_stop_file_that_was_left_is_not_for_the_next_process(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(training(place, run, "--train.max_steps", "1")) == 0
    (run / STOP).touch()
    assert main(["train", "--resume", str(run), "--train.max_steps", "2"]) == 0
    assert not (run / STOP).exists()


def test_a_second_process_leaves_the_outcome_of_the_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    codes: list[int] = []
    whole = Recorder.stepped

    def stepped(self: Recorder, record: Any) -> bool:
        if not codes:
            refused = subprocess.run(
                [sys.executable, "-m", "weitune", "train", "--resume", str(run)], capture_output=True, check=False
            )
            codes.append(refused.returncode)
            codes.append(json_object(run / OUTCOME)["pid"])
        return whole(self, record)

    monkeypatch.setattr(Recorder, "stepped", stepped)
    assert main(training(place, run, "--train.epochs", "1")) == 0
    assert codes == [2, os.getpid()]


def test_progress_within_a_phase_is_written_now_and_then(tmp_path: Path) -> None:
    with Status("train", tmp_path / "status.json") as status:
        enter_phase("reading")
        before = status._written
        for i in range(50):
            get_on(i, 50)
        assert status.fields["done"] == 49
        assert status._written == before or time.monotonic() - before >= 0.5


def test_a_folder_without_a_lock_is_not_training(tmp_path: Path) -> None:
    assert not is_training(tmp_path)
    assert not is_training(tmp_path / "none")


def test_json_is_utf_8_whatever_the_terminals_encoding(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "甄嬛.json"
    rows.write_text(json.dumps(ROWS), encoding="utf-8")
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", errors="replace"))
    assert main(["data", "check", str(rows), "--json"]) == 0
    sys.stdout.flush()
    assert "甄嬛.json" in str(json.loads(raw.getvalue()))


def test_what_programs_read_is_english_to_the_last_word(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, chinese = tmp_path / "run", re.compile("[\u4e00-\u9fff]")
    assert main(training(place, output, "--train.max_steps", "1")) == 0
    status = tmp_path / "status.json"
    assert main(["--language", "zh", "train", "--resume", str(output), "--lora.r", "9", "--status", str(status)]) == 2
    told = json_object(status)
    assert "lora.r" in told["message"]
    assert not chinese.search(told["message"])
    assert chinese.search(told["told"])
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps([ROWS[0]] * 4 + [{**ROWS[0], "output": ""}]), encoding="utf-8")
    capsys.readouterr()
    plan = ["--language", "zh", "plan", "--model", str(place / "model"), "--data", str(twice), "--json"]
    assert main(plan) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    choose_language(None)
    assert len(notes) > 2
    assert not [note for note in notes if chinese.search(note)]
