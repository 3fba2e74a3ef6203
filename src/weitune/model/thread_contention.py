"""Let OpenMP's threads sleep while other programs want the processor.

GNU's OpenMP, which PyTorch uses on Linux, lets a thread that waits for another one spin for about a millisecond before
it sleeps. On a quiet machine that is right: the wait is short, and waking a thread takes longer. Beside another busy
program the other thread is often not running, and the spinning one keeps the processor from it: beside two busy loops
on two cores, an optimizer step of SmolLM2 takes eight times as long (bench/busy.py).

So a daemon thread reads how long this process's threads wait for a processor (``/proc/self/task/*/schedstat``):

    a thread waited more than 25 % of the time, twice in a row    ─▶ open a second pool of sleeping OpenMP threads
    none waited more than 8 % of the time, for three seconds      ─▶ close it

While the second pool is open, libgomp counts more threads than processors, and its threads spin only briefly before
they sleep. The threads that compute and their number stay the same, and so do their results, to the bit.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

USER_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables that set how long threads spin. weitune leaves threads alone where one of them is set."""
_TASKS = Path("/proc/self/task")
_PERIOD_SECONDS = 0.25
_CONTENDED_SHARE, _CONTENDED_PERIODS = 0.25, 2
_QUIET_SHARE, _QUIET_PERIODS = 0.08, 12


class Contention:
    """Decides from the periods so far whether the processor is contended; at first it is not."""

    def __init__(self) -> None:
        self.contended = False
        self._run = 0

    def update(self, share: float) -> bool:
        """Return whether the processor is contended, given the longest wait in the last period, as a share of it."""
        against = share < _QUIET_SHARE if self.contended else share > _CONTENDED_SHARE
        self._run = self._run + 1 if against else 0
        if self._run >= (_QUIET_PERIODS if self.contended else _CONTENDED_PERIODS):
            self.contended, self._run = not self.contended, 0
        return self.contended


class SecondPool:
    """Sleeping OpenMP threads, enough to have more threads than processors, until it is closed."""

    def __init__(self) -> None:
        """Start the threads. Raises OSError or AttributeError if the process has not loaded GNU's OpenMP."""
        openmp = _loaded_openmp()
        parallel = openmp.GOMP_parallel  # (function, argument, threads, flags): what compilers call for a region
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL) returns at once
        threads = max(2, openmp.omp_get_num_procs() - openmp.omp_get_max_threads() + 2)
        self._owner = ThreadPoolExecutor(1, "openmp-second-pool")  # OpenMP's threads belong to the one that asks
        self._owner.submit(parallel, nothing, None, threads, 0).result()

    def close(self) -> None:
        self._owner.shutdown()


def _loaded_openmp() -> ctypes.CDLL:
    """Return the GNU OpenMP that is loaded. Never load one: torch would use that copy instead of its own."""
    return ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)


def _second_pool() -> SecondPool | None:
    """Return an open second pool, or None where no thread spins: without GNU's OpenMP, or with one thread."""
    with suppress(OSError, AttributeError):
        if _loaded_openmp().omp_get_max_threads() > 1:
            return SecondPool()
    return None


def waited_seconds(tasks: Path = _TASKS) -> dict[str, float]:
    """Return how long each thread of this process has waited for a processor, by its id; empty if not reported."""
    waited = {}
    with suppress(OSError):
        for task in tasks.iterdir():
            with suppress(OSError, IndexError, ValueError):  # a thread that has ended meanwhile
                waited[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return waited


def longest_wait(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the longest wait of a thread between two readings, in seconds."""
    return max((waited - before[task] for task, waited in after.items() if task in before), default=0.0)


class Watch(threading.Thread):
    """Opens the second pool when the processor becomes contended, and closes it when it becomes quiet.

    ``read`` returns how long each thread has waited so far; it is called every ``period`` seconds. ``open_pool``
    returns the pool, or None where it would not help.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, float]] = waited_seconds,
        open_pool: Callable[[], SecondPool | None] = _second_pool,
        period: float = _PERIOD_SECONDS,
    ) -> None:
        super().__init__(name="openmp-contention", daemon=True)
        self._read, self._open_pool, self._period = read, open_pool, period
        self._ended = threading.Event()
        self.pool: SecondPool | None = None

    def run(self) -> None:
        """Watch until the process ends or :meth:`end` is called."""
        contention, before = Contention(), self._read()
        with suppress(RuntimeError):  # no thread can be started: the process is ending
            while not self._ended.wait(self._period):
                after = self._read()
                self._follow(contention.update(longest_wait(before, after) / self._period))
                before = after
        if self.pool is not None:
            self.pool.close()

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _follow(self, contended: bool) -> None:
        if contended and self.pool is None:
            self.pool = self._open_pool()
        elif not contended and self.pool is not None:
            self.pool.close()
            self.pool = None


_started: int | None = None
"""Id of the process that watches: its forks have no such thread."""


def watch_contention() -> None:
    """Start watching, once in a process, unless the user has set how long threads spin or waits are not reported."""
    global _started  # noqa: PLW0603  (one watch in a process)
    if _started == os.getpid() or any(name in os.environ for name in USER_SETTINGS) or not waited_seconds():
        return
    _started = os.getpid()
    Watch().start()
