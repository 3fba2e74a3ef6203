"""The long form of tests/faults/test_searches.py: searches killed at any instant, which go on to the same bits."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults.processes import Process, Starter
from tests.faults.runs import Inputs

KILLS = 10
KEYS = {"validation": 0.3, "train.batch_size": 2, "train.epochs": 20}


def searches(scratch: Path, inputs: Inputs, starter: Starter, draw: random.Random) -> dict[str, Any]:
    """SIGKILL ten searches, each at a random instant of its whole length, and go on with them."""
    expected, seconds = _undisturbed(scratch, inputs, starter)
    outcomes = []
    for number in range(KILLS):
        folder = scratch / f"search-{number}"
        process = _start(folder, inputs, starter)
        pause = draw.uniform(0.02, seconds)
        time.sleep(pause)
        process.send(signal.SIGKILL)
        code = process.wait()
        done = len(_trials(folder))
        again = _start(folder, inputs, starter)
        assert again.wait() == 0, again.said
        same = _trials(folder) == _trials(expected) and _best(folder) == _best(expected)
        outcomes.append({"when": f"after {pause:.2f} s", "code": code, "trials": done, "same_bits": same})
        print(f"  {outcomes[-1]}")
    return {"passed": sum(each["same_bits"] for each in outcomes), "of": KILLS, "outcomes": outcomes}


def _undisturbed(scratch: Path, inputs: Inputs, starter: Starter) -> tuple[Path, float]:
    """Return the folder of a search that nothing disturbs, and the seconds that it takes."""
    folder = scratch / "search"
    began = time.perf_counter()
    process = _start(folder, inputs, starter)
    assert process.wait() == 0, process.said
    return folder, time.perf_counter() - began


def _start(folder: Path, inputs: Inputs, starter: Starter) -> Process:
    """Begin a search in ``folder``, or go on with the one that is there."""
    if folder.exists():
        arguments = ["--resume", str(folder)]
    else:
        tree = {key: value[0] if isinstance(value, list) else value for key, value in inputs.tree(folder).items()}
        arguments = [f"--{key}={value}" for key, value in {**tree, **KEYS}.items()]
    return starter.start(["tune", *arguments, "--device", "cpu"], folder.with_suffix(".log"))


def _trials(folder: Path) -> list[dict[str, Any]]:
    """Return every trial that is done with its losses, but without the time that it took."""
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    trials = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


def _best(folder: Path) -> bytes:
    return (folder / "best.yaml").read_bytes()
