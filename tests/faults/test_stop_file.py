"""A stop file ends a run, or a search, whatever it is at: it finds, downloads, reads, keeps, measures or tries."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.pairs import pair_rows
from tests.faults.processes import Process, Starter
from tests.faults.runs import Inputs
from tests.hub import local_hub
from tests.limits import HANG_SECONDS
from tests.tiny import save_tiny
from weitune.cli import main
from weitune.files.json_files import json_object
from weitune.run.names import STOP
from weitune.training.signals import StopRequest, heeding_stop_file, stop_requests
from weitune.tune.folder import outcomes

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs fork and POSIX signals")
BEFORE_A_STEP = "stopped by the file 'stop' before a step was done; nothing was written"


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture
def start(starter: Starter, inputs: Inputs, tmp_path: Path) -> Callable[..., Process]:
    """Return a function that starts a command on the inputs, into ``tmp_path / "run"`` and with a status."""

    def started(command: str, **overrides: object) -> Process:
        tree = {**inputs.tree(tmp_path / "run"), "data": inputs.data, **overrides}
        options = [f"--{key}={value}" for key, value in tree.items()]
        more = ["--device", "cpu", "--status", str(tmp_path / "status.json")]
        return starter.start([command, *options, *more], tmp_path / "said")

    return started


def phase(folder: Path) -> object:
    return json_object(folder / "status.json").get("phase")


def is_reading(folder: Path) -> bool:
    return phase(folder) == "reading" and bool(json_object(folder / "status.json")["done"])


def stop(run: Path) -> None:
    """Make the stop file, as a user does."""
    run.mkdir(parents=True, exist_ok=True)
    (run / STOP).touch()


def many_rows(folder: Path, count: int = 30_000) -> Path:
    rows = [{"instruction": f"Who are you {i}?", "output": f"I am number {i}. " * 20} for i in range(count)]
    (folder / "many.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "many.json"


@pytest.mark.parametrize("moment", ["starting", "reading", "keeping", "measuring the reference"])
def test_a_run_before_its_first_step(moment: str, start: Callable[..., Process], tmp_path: Path) -> None:
    run = tmp_path / "run"
    if moment == "starting":
        process = start("train")
        process.until((tmp_path / "status.json").exists)
    elif moment == "reading":
        process = start("train", data=many_rows(tmp_path))
        process.until(lambda: is_reading(tmp_path))
    elif moment == "keeping":
        process = start("train", data=many_rows(tmp_path, 3000), **{"keep.share": 0.5, "keep.max_answer_tokens": 500})
        process.until(lambda: phase(tmp_path) == "evaluating")
    else:
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text("\n".join(json.dumps(row) for row in pair_rows(4000)), encoding="utf-8")
        process = start("train", data=pairs, **{"preference.method": "dpo", "train.learning_rate": 1e-3})
        process.until(lambda: phase(tmp_path) == "evaluating")
    if moment != "starting":
        assert json_object(tmp_path / "status.json")["run"] == str(run)
    stop(run)
    assert process.wait() == 130
    assert BEFORE_A_STEP in " ".join(process.said.split())
    assert not run.exists()
    assert not list(tmp_path.glob(".run*"))
    told = json_object(tmp_path / "status.json")
    assert (told["state"], told["exit_code"]) == ("stopped", 130)


def test_a_download(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    status, run = tmp_path / "status.json", tmp_path / "run"

    def stop_in_the_middle() -> None:
        end = time.monotonic() + HANG_SECONDS
        while "model.safetensors" not in hub.downloaded and time.monotonic() < end:
            time.sleep(0.01)
        stop(run)

    with local_hub() as hub:
        hub.add("someone/tiny", save_tiny(tmp_path / "model"))
        hub.trickles = {"model.safetensors"}
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "DOWNLOAD_CHUNK_SIZE": 500,
        }.items():
            monkeypatch.setattr(constants, name, value)
        user = threading.Thread(target=stop_in_the_middle)
        user.start()
        arguments = ["train", "--model", "someone/tiny", "--data", str(inputs.data), "--output", str(run)]
        assert main([*arguments, "--device", "cpu", "--status", str(status)]) == 130
        user.join()
    assert not run.exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert json_object(status)["state"] == "stopped"


def test_a_run_that_loads_its_weights(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, status = tmp_path / "run", tmp_path / "status.json"

    def loading(*_: object, **__: object) -> None:
        assert phase(tmp_path) == "loading"
        stop(run)
        time.sleep(HANG_SECONDS)

    monkeypatch.setattr("weitune.model.load.weights._load", loading)
    arguments = ["train", "--model", str(inputs.model), "--data", str(inputs.data), "--output", str(run)]
    assert main([*arguments, "--device", "cpu", "--status", str(status)]) == 130
    assert not run.exists()
    assert json_object(status)["state"] == "stopped"


def test_ctrl_c_together_with_a_stop_file_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request would end the process at once, without a checkpoint."""
    monkeypatch.setattr("weitune.training.signals._signal_main_thread", lambda: None)
    request = StopRequest()
    with stop_requests(request), request.finishing_steps():
        request.interrupt("the file 'stop'")
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # what the stop file sends
        assert request.reason == "SIGINT"


@pytest.mark.parametrize("moment", ["reading", "trying"])
def test_a_search(moment: str, start: Callable[..., Process], starter: Starter, tmp_path: Path) -> None:
    search = tmp_path / "run"
    if moment == "reading":
        process = start("tune", data=many_rows(tmp_path))
        process.until(lambda: is_reading(tmp_path))
    else:
        process = start("tune", **{"train.epochs": 40})
        process.until(lambda: search.is_dir() and outcomes(search))
    assert json_object(tmp_path / "status.json")["folder"] == str(search)
    stop(search)
    assert process.wait() == 130
    if moment == "reading":
        assert BEFORE_A_STEP in " ".join(process.said.split())
        assert not search.exists()
        return
    assert "stopped by the file 'stop'; the trials that are done are kept" in " ".join(process.said.split())
    assert not (search / STOP).exists()
    done = len(outcomes(search))
    process = starter.start(["tune", "--resume", str(search), "--device", "cpu"], tmp_path / "again")
    process.until(lambda: len(outcomes(search)) > done)
    stop(search)
    assert process.wait() == 130


def test_a_file_that_was_left_stops_nothing(tmp_path: Path) -> None:
    stop(tmp_path / "run")
    time.sleep(0.02)
    request = StopRequest()
    with stop_requests(request), heeding_stop_file(tmp_path / "run", request):
        time.sleep(0.6)
        assert not request
        assert not (tmp_path / "run" / STOP).exists()


def test_in_another_thread_than_the_main_one_it_waits(tmp_path: Path) -> None:
    """There, nothing can be interrupted; whoever works there looks at the request."""
    request = StopRequest()
    seen: list[str] = []

    def work() -> None:
        with stop_requests(request), heeding_stop_file(tmp_path, request):
            stop(tmp_path)
            end = time.monotonic() + HANG_SECONDS
            while not request and time.monotonic() < end:
                time.sleep(0.01)
            seen.append(request.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["the file 'stop'"]
    assert not (tmp_path / STOP).exists()
