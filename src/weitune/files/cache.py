"""The cache folder, for what weitune downloads or prepares and can make again; and the free space of a disk."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from weitune.errors import InputError
from weitune.messages.quantities import size_text


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
