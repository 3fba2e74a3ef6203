"""Start the processes of one run on this machine, one for each device, and end them together.

    weitune train … --devices 2 ─┬─ RANK 0   the only one whose output is shown
                                 └─ RANK 1   its output is shown only if it is the first to fail

The processes get the variables that torchrun sets, so torchrun can start a run too. The exit code is that of the
process that failed first. Stop signals are forwarded once to each process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

from weitune.errors import InputError
from weitune.messages import say
from weitune.ranks import WORLD_SIZE, free_port

_GRACE_SECONDS = {2: 60.0, 3: 60.0, 130: 7200.0}
"""How long the other processes may take to end after one has ended with this exit code."""
_GRACE_SECONDS_OTHERWISE = 10.0
_FORWARDED_AS = {"SIGHUP": signal.SIGTERM}
"""A terminal that closes asks for a stop; the processes are in sessions of their own and do not see it."""
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines and processes of a run, and the number of this machine."""

    devices: int
    """Processes on each machine."""
    nodes: int = 1
    node: int = 0
    """Number of this machine, from 0."""
    address: str = ""
    """HOST:PORT of machine 0, to which the processes connect; needed for several machines."""

    def environments(self) -> list[dict[str, str]]:
        """Return the environment variables of each process on this machine.

        Raises InputError if the address or the number of this machine is wrong.
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


def refuse_one_device(device: str | None, devices: int) -> None:
    """Raise InputError if ``device`` is the number of one, and there is to be a process for each of ``devices``."""
    if device is not None and devices > 1 and re.fullmatch(r"(?!cpu:)\w+:\d+", device):
        raise InputError("training.processes.one_device", device=device, processes=devices)


def launch(machines: Machines, arguments: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run ``weitune`` with ``arguments`` once for each device and return their common exit code.

    ``variables`` are added to the environment of each process.
    Raises InputError if the address or the number of this machine is wrong.
    """
    environments = machines.environments()
    with ExitStack() as stack:
        processes, said = [], []
        for environment in environments:
            quiet = stack.enter_context(tempfile.TemporaryFile()) if environment["RANK"] != "0" else None
            # In a new session, Ctrl-C reaches only this process, which forwards it.
            process = subprocess.Popen(
                [sys.executable, "-m", "weitune", *arguments],
                env={**os.environ, **variables, **environment},
                stdout=quiet,
                stderr=quiet,
                start_new_session=True,
            )
            stack.callback(_end, process)
            processes.append(process)
            said.append(quiet)
        with _forwarding_signals(processes):
            failed = _first_failure(processes)
        if failed is None:
            return 0
        _show(said[failed])
        code = int(processes[failed].returncode)
        if code < 0:
            print(say("cli.launch.process_ended_by", failed=failed, name=signal.Signals(-code).name), file=sys.stderr)
        return code if code in {2, 3, 130} else 1


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all ``processes``, kill those that go on long after a failure, and return which failed first."""
    failed: int | None = None
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = _culprit(processes)
            if failed is not None:
                deadline = time.monotonic() + _GRACE_SECONDS.get(processes[failed].returncode, _GRACE_SECONDS_OTHERWISE)
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(_POLL_SECONDS)
    return _culprit(processes) if failed is None else failed


def _culprit(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return which has failed, preferring one killed by a signal: its peers fail because they lost it."""
    ended = [(process.returncode > 0, k) for k, process in enumerate(processes) if process.returncode]
    return min(ended)[1] if ended else None


def _forwarding_signals(processes: Sequence[subprocess.Popen[bytes]]) -> ExitStack:
    """Return a context in which signals for a stop or a checkpoint are forwarded to all ``processes``."""

    def pass_on(number: int, frame: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(_FORWARDED_AS.get(signal.Signals(number).name, number))

    stack = ExitStack()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            continue  # under nohup, SIGHUP means nothing
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
