"""The cache folder: what weitune downloads or prepares, all of which can be made again."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from weitune.errors import InputError
from weitune.messages import say
from weitune.messages.quantities import size_text


def free_bytes(folder: Path) -> int | None:
    """Return how many bytes a user may still write where ``folder`` lies, or None if the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def check_room(folder: Path, need_bytes: int, what: str, fix: str) -> None:
    """Raise InputError if ``what`` will need ``need_bytes`` in ``folder`` and the disk has less.

    ``folder`` need not exist yet. Where the system does not say how much is free, nothing is refused.
    """
    free = free_bytes(next((place for place in (folder, *folder.parents) if place.exists()), folder))
    if free is not None and free < need_bytes:
        raise InputError(
            "files.room.too_little",
            what=what,
            folder=folder,
            needed=size_text(need_bytes),
            free=size_text(free),
            fix=fix,
        )


def cache_folder() -> Path:
    """Return the folder for what weitune downloads or prepares, by the XDG base directory specification.

    A relative ``XDG_CACHE_HOME`` does not count, as the specification says. Raises InputError if there is no other.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "weitune"
    try:
        return Path.home() / ".cache" / "weitune"
    except RuntimeError:  # a container whose user has no entry and no HOME
        raise InputError("files.cache.no_home_folder") from None


def mark_used(path: Path) -> None:
    """Note at ``path``, a file in the cache, that it is used now; ``weitune cache`` goes by that."""
    with suppress(OSError):  # a cache that others may only read
        os.utime(path)


def cache_fix() -> str:
    """Return how to get room where weitune keeps what it has prepared."""
    return say("files.cache.make_room")
