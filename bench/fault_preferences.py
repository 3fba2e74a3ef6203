"""Runs on pairs that are killed at any instant, while their reference is measured too, and go on to the same bits.

The long form of tests/faults/test_preferences.py."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults.pairs import arguments, assert_same_run, make_pairs
from tests.faults.processes import Process, Starter, steps_done
from tests.faults.runs import Inputs

KILLS = 20
METHODS = ("dpo", "kto")


def preferences(scratch: Path, draw: random.Random) -> dict[str, Any]:
    """SIGKILL twenty runs of two methods, each at a random instant of its whole length, and go on with them."""
    pairs = make_pairs(scratch / "pairs")
    starter = Starter(XDG_CACHE_HOME=str(scratch / "cache-of-pairs"))
    expected, seconds = {}, {}
    for method in METHODS:
        began = time.perf_counter()
        expected[method] = _finished(starter, pairs, scratch / f"pairs-{method}", method)
        seconds[method] = time.perf_counter() - began
    outcomes = []
    for number in range(KILLS):
        method, run = METHODS[number % len(METHODS)], scratch / f"pairs-{number}"
        process = _start(starter, pairs, run, method)
        pause = draw.uniform(0.02, seconds[method])
        time.sleep(pause)
        process.send(signal.SIGKILL)
        code, done = process.wait(), steps_done(run)
        outcomes.append(
            {"when": f"after {pause:.2f} s", "method": method, "code": code, "steps": done,
             "same_bits": _same(_finished(starter, pairs, run, method), expected[method])}
        )  # fmt: skip
        print(f"  {outcomes[-1]}")
    starter.close()
    return {"passed": sum(each["same_bits"] for each in outcomes), "of": KILLS, "outcomes": outcomes}


def _start(starter: Starter, pairs: Inputs, run: Path, method: str) -> Process:
    return starter.start(arguments(pairs, run, method), run.with_suffix(".log"))


def _finished(starter: Starter, pairs: Inputs, run: Path, method: str) -> Path:
    """Begin a run, or go on with the one that is there, to its end."""
    process = _start(starter, pairs, run, method)
    assert process.wait() == 0, process.said
    return run


def _same(run: Path, expected: Path) -> bool:
    try:
        assert_same_run(run, expected)
    except AssertionError:
        return False
    return True
