"""The watch over the processor: when it decides what, what the second pool is, and that results stay the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import accumulate, chain, repeat
from pathlib import Path

import pytest

from tests.limits import HANG_SECONDS
from weitune.model import thread_contention
from weitune.model.thread_contention import Contention, SecondPool, Watch, longest_wait, waited_seconds

linux = pytest.mark.skipif(not waited_seconds(), reason="the system does not tell how long threads wait")


def verdicts(*shares: float) -> list[bool]:
    state = Contention()
    return [state.update(share) for share in shares]


def test_one_short_wait_is_no_contention() -> None:
    assert verdicts(0.9, 0.0, 0.9, 0.1, 0.2) == [False] * 5


def test_two_periods_are_and_three_quiet_seconds_end_it() -> None:
    assert verdicts(0.3, 0.5) == [False, True]
    quiet = [0.01] * 12
    assert verdicts(0.3, 0.5, *quiet) == [False, True, *[True] * 11, False]
    assert verdicts(0.3, 0.5, *quiet[:11], 0.2, *quiet) == [False, True, *[True] * 23, False]


def test_the_thread_that_waited_longest_counts_and_only_if_it_was_there_before() -> None:
    assert longest_wait({"1": 5.0, "2": 1.0, "gone": 9.0}, {"1": 5.1, "2": 1.3, "new": 7.0}) == pytest.approx(0.3)
    assert longest_wait({}, {"1": 5.0}) == 0.0


def test_the_waits_of_threads_are_read(tmp_path: Path) -> None:
    for task, line in {"7": "100 2500000000 3", "8": "1 0 1", "9": "broken"}.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(line)
    (tmp_path / "10").mkdir()
    assert waited_seconds(tmp_path) == {"7": 2.5, "8": 0.0}
    assert waited_seconds(tmp_path / "none") == {}


@linux
def test_this_process_has_threads() -> None:
    assert str(os.getpid()) in waited_seconds()


def test_the_pool_opens_and_closes_as_the_processor_is_wanted() -> None:
    seen: list[str] = []

    class Pool(SecondPool):
        def __init__(self) -> None:
            seen.append("open")

        def close(self) -> None:
            seen.append("closed")

    def waits() -> Iterator[float]:
        """Half a period of waiting in each of the first four, nothing in the next twenty, and half again from there."""
        return accumulate(chain(repeat(0.0005, 4), repeat(0.0, 20), repeat(0.0005)))

    readings = waits()
    watch = Watch(lambda: {"1": next(readings)}, Pool, period=0.001)
    watch.start()
    end = time.monotonic() + HANG_SECONDS
    while len(seen) < 3:
        assert time.monotonic() < end, seen
        time.sleep(0.001)
    watch.end()
    assert seen == ["open", "closed", "open", "closed"]


IN_A_PROCESS = """
import hashlib, json, os, time
import torch
from weitune.model.thread_contention import SecondPool

def threads():
    return len(os.listdir("/proc/self/task"))

torch.manual_seed(0)
a, b = torch.randn(300, 400), torch.randn(400, 500)
def product():
    x = (a @ b).softmax(-1).sum(0)
    return hashlib.sha256(x.numpy().tobytes()).hexdigest()

alone = product()
before = threads()
pool = SecondPool()
during, beside = threads(), product()
pool.close()
end = time.monotonic() + {hang}
while threads() > before and time.monotonic() < end:
    time.sleep(0.01)
print(json.dumps([alone == beside == product(), during - before, threads() - before]))
"""


@linux
def test_the_second_pool_adds_sleeping_threads_changes_no_bit_and_goes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS.replace("{hang}", str(HANG_SECONDS))],
        env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same, more, left = json.loads(done.stdout)
    assert same
    assert more == max(2, len(os.sched_getaffinity(0)))  # its owner, and OpenMP's: one more than there are processors
    assert left == 0


STARTED = """
import os, sys, threading
before = dict(os.environ)
import weitune
from weitune.cli import main
imported = [t.name for t in threading.enumerate()]
main(["--version"])
print(imported, [t.name for t in threading.enumerate()], dict(os.environ) == before, "torch" in sys.modules)
"""


@linux
@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1000"}])
def test_the_command_line_watches_and_importing_does_not(own: dict[str, str]) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in thread_contention.USER_SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", STARTED], env={**clean, **own}, capture_output=True, text=True, check=True
    )
    watching = "['MainThread']" if own else "['MainThread', 'openmp-contention']"
    assert done.stdout.splitlines()[-1] == f"['MainThread'] {watching} True False"
