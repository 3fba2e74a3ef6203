"""What can happen to a file on a disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path, random.Random], None]


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def lose(path: Path, draw: random.Random) -> None:
    path.unlink()


def grow(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def swap_for_a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()
