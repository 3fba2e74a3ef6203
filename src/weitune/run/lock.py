"""One writer: while a process trains into a run's folder, no other can.

The lock is a kernel lock on the file ``.lock`` (:mod:`weitune.files.locks`), so it is never stale. The file names its
holder and is emptied when the run ends in order: a name left in it means that the process was killed.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from weitune.errors import RunError
from weitune.files.locks import acquire
from weitune.files.publish import BINARY
from weitune.messages import say
from weitune.run.names import LOCK

_TRIES, _PAUSE_SECONDS = 10, 0.05
"""The lock is tried several times, since :func:`lock_state` in another process holds it for an instant."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that trains, or trained, in a run's folder."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return say("run.lock.holder", pid=self.pid, host=self.host, since=self.since)


@dataclass(frozen=True, slots=True)
class Lock:
    """The result of taking the lock."""

    held: bool
    """False if the file system has no locks, so that nothing keeps a second process out."""
    abandoned: Holder | None
    """The previous holder, if it was killed or its machine stopped."""


@dataclass(frozen=True, slots=True)
class LockState:
    """A run's lock, seen by a process that does not train."""

    held: bool | None
    """Whether a process holds it; None if there is no lock file, or the file system has no locks."""
    holder: Holder | None
    """Who holds it, or held it and was killed."""


def lock_state(run: Path) -> LockState:
    """Return the state of the lock of the folder ``run``, without writing or keeping another process from it."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDONLY | BINARY)
    except OSError:
        return LockState(None, None)
    try:
        free = acquire(descriptor, shared=True)
        return LockState(None if free is None else not free, _holder(descriptor))
    finally:
        os.close(descriptor)


@contextmanager
def run_lock(run: Path) -> Iterator[Lock]:
    """Hold the lock of the folder ``run`` while the block runs. Raises RunError if another process holds it."""
    descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
    try:
        held = acquire(descriptor)
        for _ in range(_TRIES):
            if held is False:
                time.sleep(_PAUSE_SECONDS)
                held = acquire(descriptor)
        holder = _holder(descriptor)
        if held is False:
            if holder is None:
                raise RunError("run.lock.another_process_trains", run=run)
            raise RunError("run.lock.held", run=run, holder=holder)
        _write_holder(descriptor)
        try:
            yield Lock(held is True, holder)
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> Holder | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return Holder(**json.loads(os.read(descriptor, 4096)))
    except (OSError, ValueError, TypeError):
        return None


def _write_holder(descriptor: int) -> None:
    """Write the holder's name, unless the disk is full: that must not keep a run from resuming."""
    holder = Holder(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(asdict(holder)).encode())
    except OSError:
        return
