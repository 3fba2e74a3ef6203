"""Start the processes of one run on this machine, a process for each device, and let them end together.

    weitune train … --devices 2 ─┬─ RANK 0   the only one that talks
                                 └─ RANK 1   silent; what it has to say is shown if it is the first to fail

They find each other by the variables that torchrun sets too, so a run may as well be started by it. The exit code is
that of the process that failed first. A stop signal is passed on once to each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

from weitune.errors import InputError
from weitune.messages import say
from weitune.ranks import WORLD_SIZE, free_port

_SECONDS_TO_FOLLOW = {2: 60.0, 3: 60.0}
"""How long the others may go on after one has ended with this code."""
_SECONDS_OTHERWISE = 10.0
_ORDERLY = (0, 130)
_GLANCE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Machines:
    """How many processes a run has, and where this machine stands among several."""

    devices: int
    """Processes on each machine."""
    nodes: int = 1
    node: int = 0
    """Number of this machine, from 0."""
    address: str = ""
    """HOST:PORT of machine 0, where the processes meet; needed for several machines."""

    def environments(self) -> list[dict[str, str]]:
        """Return what each process on this machine has to know.

        Raises InputError if the machines cannot find each other.
        """
        host, _, port = self.address.rpartition(":")
        if self.nodes > 1 and not (host and port.isdigit()):
            raise InputError("cli.launch.main_address_missing")
        if not 0 <= self.node < self.nodes:
            raise InputError("cli.launch.node_rank_out_of_range", node=self.node, nodes=self.nodes, last=self.nodes - 1)
        shared = {
            WORLD_SIZE: str(self.devices * self.nodes),
            "LOCAL_WORLD_SIZE": str(self.devices),
            "MASTER_ADDR": host or "127.0.0.1",
            "MASTER_PORT": port or str(free_port("127.0.0.1")),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // self.devices)),
        }
        return [
            {**shared, "LOCAL_RANK": str(k), "RANK": str(self.node * self.devices + k)} for k in range(self.devices)
        ]


def launch(machines: Machines, arguments: Sequence[str]) -> int:
    """Run ``weitune`` with ``arguments`` once for each device and return the exit code of all.

    Raises InputError if the machines cannot find each other.
    """
    environments = machines.environments()
    with ExitStack() as stack:
        processes, said = [], []
        for environment in environments:
            quiet = stack.enter_context(tempfile.TemporaryFile()) if environment["RANK"] != "0" else None
            # A session of its own: Ctrl-C reaches this process alone, which passes it on, and not both.
            process = subprocess.Popen(
                [sys.executable, "-m", "weitune", *arguments],
                env={**os.environ, **environment},
                stdout=quiet,
                stderr=quiet,
                start_new_session=True,
            )
            stack.callback(_end, process)
            processes.append(process)
            said.append(quiet)
        with _passing_on(processes):
            failed = _first_failure(processes)
        if failed is None:
            return 0
        _show(said[failed])
        code = int(processes[failed].returncode)
        if code < 0:
            print(say("cli.launch.process_ended_by", failed=failed, name=signal.Signals(-code).name), file=sys.stderr)
        return code if code in {2, 3, 130} else 1


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all ``processes`` and return which failed first; those that do not follow a failure are killed."""
    failed: int | None = None
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = _culprit(processes)
            if failed is not None and processes[failed].returncode not in _ORDERLY:
                deadline = time.monotonic() + _SECONDS_TO_FOLLOW.get(processes[failed].returncode, _SECONDS_OTHERWISE)
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(_GLANCE_SECONDS)
    return _culprit(processes) if failed is None else failed


def _culprit(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return which has failed: one that a signal ended before those that may have missed it."""
    ended = [(process.returncode > 0, k) for k, process in enumerate(processes) if process.returncode]
    return min(ended)[1] if ended else None


def _passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> ExitStack:
    """Return a context in which signals that ask for a stop or a checkpoint go to all ``processes``."""

    def pass_on(number: int, frame: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    stack = ExitStack()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is not None:
            before: Callable[..., Any] | int | None = signal.signal(number, pass_on)
            stack.callback(signal.signal, number, before)
    return stack


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _show(said: IO[bytes] | None) -> None:
    if said is not None:
        said.seek(0)
        sys.stderr.write(said.read().decode("utf-8", "replace"))
