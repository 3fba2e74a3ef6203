"""The cache folder, for what weitune downloads or prepares and can make again; and the free space of a disk.

What is expensive and decided by its inputs is kept by fingerprint:

    place = cached_file("general", parts, ".json")      ~/.cache/weitune/general/<fingerprint>.json
    value = read_cached(place, parse)                    None if it has to be made
    store_cached(place, contents)

A cache that cannot be read or written only costs time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from weitune.errors import InputError
from weitune.files.publish import publish_bytes
from weitune.messages.quantities import size_text

T = TypeVar("T")


def free_bytes(folder: Path) -> int | None:
    """Return how many bytes a user may still write on the disk of ``folder``; None if the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def shortage(folder: Path, need_bytes: int) -> dict[str, object] | None:
    """Return the values of a message (``folder``, ``needed``, ``free``) if the disk of ``folder`` has less than
    ``need_bytes`` free, and None otherwise.

    ``folder`` need not exist yet. Where the system does not report free space, nothing counts as too much.
    """
    free = free_bytes(next((place for place in (folder, *folder.parents) if place.exists()), folder))
    if free is None or free >= need_bytes:
        return None
    return {"folder": folder, "needed": size_text(need_bytes), "free": size_text(free)}


def cache_folder() -> Path:
    """Return the folder for what weitune downloads or prepares, by the XDG base directory specification.

    A relative ``XDG_CACHE_HOME`` is ignored, as specified. Raises InputError if there is no home folder either.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "weitune"
    try:
        return Path.home() / ".cache" / "weitune"
    except RuntimeError:  # a container whose user has no entry and no HOME
        raise InputError("files.cache.no_home_folder") from None


def mark_used(path: Path) -> None:
    """Set the modification time of ``path``, a file in the cache; ``weitune cache`` shows it as the last use."""
    with suppress(OSError):  # a cache that others may only read
        os.utime(path)


def fingerprint_of(parts: object) -> str:
    """Return 32 hexadecimal digits that differ if ``parts`` do: JSON values, and others by how they are printed."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def cached_file(kind: str, parts: object, suffix: str) -> Path:
    """Return where the cache keeps the file of a ``kind`` that :func:`fingerprint_of` names after ``parts``."""
    return cache_folder() / kind / f"{fingerprint_of(parts)}{suffix}"


def read_cached(place: Path, parse: Callable[[bytes], T]) -> T | None:
    """Return what ``parse`` makes of the contents of ``place``, which then counts as used.

    None if there is no such file, or if ``parse`` raises ValueError, KeyError or TypeError: it is damaged.
    """
    try:
        value = parse(place.read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    mark_used(place)
    return value


def store_cached(place: Path, contents: bytes) -> None:
    """Write ``contents`` to ``place`` atomically; a full disk or a cache that may only be read does not matter."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(contents, place)
