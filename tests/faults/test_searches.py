"""A search that is killed at any instant goes on to the same bits. The long form is bench/fault_searches.py."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import Process, Starter
from tests.faults.runs import Inputs

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs fork and POSIX signals")

KEYS = {"validation": 0.3, "train.batch_size": 2, "train.epochs": 4}


@pytest.fixture(scope="module")
def starter(inputs: Inputs) -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def undisturbed(starter: Starter, inputs: Inputs) -> Path:
    folder = inputs.folder / "search"
    process = start(folder, starter, inputs)
    assert process.wait() == 0, process.said
    return folder


def start(folder: Path, starter: Starter, inputs: Inputs) -> Process:
    """Begin a search in ``folder``, or go on with the one that is there."""
    if folder.exists():
        arguments = ["--resume", str(folder)]
    else:
        tree = {key: value[0] if isinstance(value, list) else value for key, value in inputs.tree(folder).items()}
        arguments = [f"--{key}={value}" for key, value in {**tree, **KEYS}.items()]
    return starter.start(["tune", *arguments, "--device", "cpu"], folder.with_suffix(".log"))


def trials(folder: Path) -> list[dict[str, Any]]:
    """Return every trial that is done, without the time that it took."""
    path = folder / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in whole]


@pytest.mark.parametrize("seed", range(3))
def test_killed(seed: int, starter: Starter, inputs: Inputs, undisturbed: Path, tmp_path: Path) -> None:
    """Twice: in the search, and in the one that goes on with it. Where in a trial is up to chance."""
    draw = random.Random(seed)
    expected = trials(undisturbed)
    folder = tmp_path / "search"
    for done in sorted(draw.sample(range(len(expected)), 2)):
        process = start(folder, starter, inputs)
        process.until(lambda done=done: folder.exists() and len(trials(folder)) >= done)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.1))
        process.send(signal.SIGKILL)
        assert process.wait() in {0, -signal.SIGKILL}, process.said
    process = start(folder, starter, inputs)
    assert process.wait() == 0, process.said
    assert trials(folder) == expected
    for name in ("best.yaml", "tune.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
