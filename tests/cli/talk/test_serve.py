"""``weitune serve`` as it is typed: a process that answers and ends in order, and what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.export.runs import save_run
from tests.limits import HANG_SECONDS
from tests.serve.live import two_runs
from weitune import Run
from weitune.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return two_runs(tmp_path_factory.mktemp("typed"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@contextmanager
def typed(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start ``weitune serve`` at a free port; give the process, and what it said until it listened."""
    command = [sys.executable, "-m", "weitune", "serve", *arguments, "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stderr
    said = ""
    try:
        for line in process.stderr:
            said += line
            if "listening at" in line:
                break
        yield process, said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def get(said: str, path: str, key: str | None = None) -> tuple[int, bytes]:
    port = re.search(r"listening at http://[\w.]+:(\d+)/v1", said)
    assert port, said
    connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=HANG_SECONDS)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_comes(number: signal.Signals, runs: dict[str, Run]) -> None:
    with typed(str(runs["first"].path), f"other={runs['second'].path}") as (process, said):
        assert "model 'first', system prompt: 你是甄嬛。" in said
        assert [model["id"] for model in json.loads(get(said, "/v1/models")[1])["data"]] == ["base", "first", "other"]
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_what_others_can_reach_gets_a_key(runs: dict[str, Run]) -> None:
    with typed(str(runs["first"].path), "--host", "0.0.0.0") as (_, said):  # noqa: S104
        key = re.search(r"API key \(shown once\): (\S{20,})", said)
        assert key
        assert get(said, "/health")[0] == 401
        assert get(said, "/health", key[1]) == (200, b'{"status": "ok"}')


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm"])
@pytest.mark.parametrize("key", ["", " \t"])
def test_a_key_that_is_blank_is_refused(
    engine: str, key: str, runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--engine", engine, "--host", "0.0.0.0", "--port", "0", "--dry-run"]  # noqa: S104
    assert main(["serve", str(runs["second"].path), *options, "--api-key", key]) == 2
    assert "--api-key is empty" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_at_once(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(runs["first"].path), "--port", str(port)]) == 2
    shown = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1 port {port}" in shown
    assert "--port" in shown


def test_a_dry_run_starts_nothing(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(runs["first"].path), "--port", "0", "--dry-run"]) == 0
    assert "would serve " in capsys.readouterr().err


def test_vllm_is_told_everything_and_the_key_stays_off_the_list_of_processes(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["first"]
    options = ["--engine", "vllm", "--api-key", "sesame", "--port", "9000", "--dry-run"]
    assert main(["serve", str(run.path), *options]) == 0
    command, notes = capsys.readouterr()
    of_base, of_text = notes.splitlines()
    assert "has no fingerprint of its base model" in of_base
    assert (
        of_text == "note: vLLM takes the text of a control token in a message, such as <|im_end|>, for the token itself"
    )
    assert re.match(rf"VLLM_API_KEY=… PYTHONPATH=\S+ vllm serve {re.escape(run.recipe.model)} ", command)
    assert "sesame" not in command
    for part in ("--port 9000", "--enable-lora", "--max-lora-rank 8", f'"path": "{run.path}/adapter"'):
        assert part in command
    template = re.search(r"--chat-template (\S+)", command)
    assert template
    assert "你是甄嬛。" in Path(template[1]).read_text(encoding="utf-8")
    assert "--dtype" not in command
    both = [str(run.path), str(runs["second"].path), "--type", "f32", "--allow-origin", "HTTPS://A.example:443/"]
    assert main(["serve", *both, "--context", "100", *options]) == 0
    command = capsys.readouterr().out
    for part in ("--dtype float32", "--allowed-origins '[\"https://a.example\"]'", "--max-model-len 100"):
        assert part in command
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["serve", str(run.path), *options[:-1]]) == 2
    assert "there is no program 'vllm' here" in capsys.readouterr().err


def test_wrong_input_exits_with_2_and_a_cure(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(runs["first"].path)
    other_base = str(save_run(tmp_path / "other", "llama").path)
    dora = str(save_run(tmp_path / "dora", "llama", variant="dora").path)
    for arguments, message, fix in (
        (["no-such-folder"], "there is no folder", "weitune train"),
        ([first, first], "two models would have the name 'first'", "another-name="),
        ([f"base={first}"], "two models would have the name 'base'", "another-name="),
        ([first, other_base], "different base models", "two servers"),
        ([dora], "DoRA", "--format gguf"),
        ([first, "--checkpoint", "base"], "the base is always served", ""),
        ([first, "--slots", "0"], "0 is not in the range", ""),
    ):
        assert main(["serve", *arguments, "--port", "0"]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert fix in shown
        assert "Traceback" not in shown
