"""Room on the disk, looked at before anything large is written to a cache."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from weitune.errors import InputError

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


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
        raise InputError("files.cache.there_no_folder_cache") from None


def check_room(folder: Path, need_bytes: int, what: str, fix: str) -> None:
    """Raise InputError if ``what`` will need ``need_bytes`` in ``folder`` and the disk has less.

    ``folder`` need not exist yet. Where the system does not say how much is free, nothing is refused.
    """
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        return
    if free < need_bytes:
        raise InputError(
            "files.cache.needs_free_there",
            what=what,
            size_text=size_text(need_bytes),
            folder=folder,
            size_text2=size_text(free),
            fix=fix,
        )


def mark_used(path: Path) -> None:
    """Note at ``path``, a file in the cache, that it is used now; ``weitune cache`` goes by that."""
    with suppress(OSError):  # a cache that others may only read
        os.utime(path)


def cache_fix() -> str:
    """Return how to get room where weitune keeps what it has prepared."""
    return (
        "Make room there (`weitune cache` shows what weitune keeps, `weitune cache clear` deletes it), or set "
        "XDG_CACHE_HOME to a folder with room."
    )


def size_text(count: int) -> str:
    """Return a size as people read it, in powers of 1000: ``98.4 MB``."""
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{count:,} bytes" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"
