"""The long form of tests/faults/test_searches.py: searches killed at any instant, which go on to the same bits."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults.processes import Starter
from tests.faults.runs import Inputs
from tests.faults.searches import start, trials

KILLS = 10
EPOCHS = 20


def searches(scratch: Path, inputs: Inputs, starter: Starter, draw: random.Random) -> dict[str, Any]:
    """SIGKILL ten searches, each at a random instant of its whole length, and go on with them."""
    expected, seconds = _undisturbed(scratch, inputs, starter)
    outcomes = []
    for number in range(KILLS):
        folder = scratch / f"search-{number}"
        process = start(folder, starter, inputs, EPOCHS)
        pause = draw.uniform(0.02, seconds)
        time.sleep(pause)
        process.send(signal.SIGKILL)
        code = process.wait()
        done = len(trials(folder))
        again = start(folder, starter, inputs, EPOCHS)
        assert again.wait() == 0, again.said
        same = trials(folder) == trials(expected) and _best(folder) == _best(expected)
        outcomes.append({"when": f"after {pause:.2f} s", "code": code, "trials": done, "same_bits": same})
        print(f"  {outcomes[-1]}")
    return {"passed": sum(each["same_bits"] for each in outcomes), "of": KILLS, "outcomes": outcomes}


def _undisturbed(scratch: Path, inputs: Inputs, starter: Starter) -> tuple[Path, float]:
    """Return the folder of a search that nothing disturbs, and the seconds that it takes."""
    folder = scratch / "search"
    began = time.perf_counter()
    process = start(folder, starter, inputs, EPOCHS)
    assert process.wait() == 0, process.said
    return folder, time.perf_counter() - began


def _best(folder: Path) -> bytes:
    return (folder / "best.yaml").read_bytes()
