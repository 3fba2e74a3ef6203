"""A layer between Python and the system's file functions that counts the calls, and stops or fails at one of them.

Every call that changes a disk is counted: open, write, fsync, close, mkdir, rename, replace, unlink, rmdir, truncate.
``kill_at=n`` ends the process at call n, as far as files can tell: a write is done by half, and nothing after it has
any effect, clean-up code included. ``after_power_cut`` then takes from the files what no fsync had put on the disk.
"""

from __future__ import annotations

import errno
import os
import pathlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir", "truncate", "ftruncate")
_PAIRED = {"rename", "replace"}


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Layer:
    """What the layer saw, and what it does."""

    kill_at: int | None = None
    fails: Callable[[str, int], int | None] = lambda call, number: None
    """From a call and its number to the errno that it fails with, if any."""
    room_bytes: int | None = None
    """How much can be written before the disk is full; deleting gives nothing back."""
    calls: list[str] = field(default_factory=list)
    dead: bool = False
    unflushed: dict[tuple[int, int], int] = field(default_factory=dict)
    """(device, inode) to bytes that are on the disk for certain."""
    renamed: list[tuple[Path, Path, bytes | None]] = field(default_factory=list)
    """Renames that no fsync of a folder has made certain, with the contents of a file that was replaced."""
    opened: set[int] = field(default_factory=set)

    def __call__(self, name: str, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self.dead:
            raise Killed
        self.calls.append(name)
        number = len(self.calls)
        if number == self.kill_at:
            self.dead = True
            if name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise Killed
        code = self.fails(name, number)
        if code is not None:
            raise OSError(code, os.strerror(code), *[str(a) for a in arguments[:1] if isinstance(a, str | Path)])
        if name == "write":
            return self._write(real, *arguments)
        if name == "fsync":
            self._flushed(os.fstat(arguments[0]))
        elif name in _PAIRED:
            source, target = map(Path, arguments)
            self.renamed.append((source, target, target.read_bytes() if target.is_file() else None))
        result = real(*arguments, **options)
        if name == "open":
            self.opened.add(result)
        elif name == "close":
            self.opened.discard(arguments[0])
        return result

    def _write(self, real: Callable[..., int], descriptor: int, data: Any) -> int:
        status = os.fstat(descriptor)
        self.unflushed.setdefault((status.st_dev, status.st_ino), status.st_size)
        if self.room_bytes is not None:
            data = data[: self.room_bytes]
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room_bytes -= len(data)
        return real(descriptor, data)

    def _flushed(self, status: os.stat_result) -> None:
        identity = status.st_dev, status.st_ino
        self.unflushed.pop(identity, None)
        self.renamed = [entry for entry in self.renamed if _identity(entry[1].parent) != identity]

    def after_power_cut(self, folder: Path, draw: random.Random) -> None:
        """Take from the files in ``folder`` what is not certain to be on the disk; undo uncertain renames, perhaps."""
        for path in folder.rglob("*"):
            certain = self.unflushed.get(_identity(path))
            if certain is not None and path.is_file():
                os.truncate(path, draw.randint(min(certain, path.stat().st_size), path.stat().st_size))
        if draw.random() < 0.5:
            for source, target, replaced in reversed(self.renamed):
                if target.exists() and not source.exists():
                    target.rename(source)
                    if replaced is not None:
                        target.write_bytes(replaced)


@contextmanager
def faults(layer: Layer) -> Iterator[Layer]:
    """Put ``layer`` in place while the block runs, and close what a killed process left open."""
    real = {name: getattr(os, name) for name in _CALLS}

    def wrapped(name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: layer(name, real[name], *arguments, **options)

    places: list[Any] = [os]
    if hasattr(pathlib, "_normal_accessor"):  # Python 3.10 keeps the functions of os there
        places.append(pathlib._normal_accessor)
    patched = [(place, name, getattr(place, name)) for place in places for name in real if hasattr(place, name)]
    for place, name, function in patched:
        if function is real[name]:
            setattr(place, name, wrapped(name))
    try:
        yield layer
    finally:
        for place, name, function in patched:
            setattr(place, name, function)
        for descriptor in layer.opened:
            os.close(descriptor)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
