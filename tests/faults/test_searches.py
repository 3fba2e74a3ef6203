"""A search that is killed at any instant goes on to the same bits. The long form is bench/fault_searches.py."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.processes import Starter
from tests.faults.runs import Inputs
from tests.faults.searches import start, trials

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs fork and POSIX signals")

EPOCHS = 4


@pytest.fixture(scope="module")
def starter(inputs: Inputs) -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def undisturbed(starter: Starter, inputs: Inputs) -> Path:
    folder = inputs.folder / "search"
    process = start(folder, starter, inputs, EPOCHS)
    assert process.wait() == 0, process.said
    return folder


@pytest.mark.parametrize("seed", range(3))
def test_killed(seed: int, starter: Starter, inputs: Inputs, undisturbed: Path, tmp_path: Path) -> None:
    """Twice: in the search, and in the one that goes on with it. Where in a trial is up to chance."""
    draw = random.Random(seed)
    expected = trials(undisturbed)
    folder = tmp_path / "search"
    for done in sorted(draw.sample(range(len(expected)), 2)):
        process = start(folder, starter, inputs, EPOCHS)
        process.until(lambda done=done: folder.exists() and len(trials(folder)) >= done)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.1))
        process.send(signal.SIGKILL)
        assert process.wait() in {0, -signal.SIGKILL}, process.said
    process = start(folder, starter, inputs, EPOCHS)
    assert process.wait() == 0, process.said
    assert trials(folder) == expected
    for name in ("best.yaml", "tune.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
