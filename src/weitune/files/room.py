"""Room on the disk, looked at before anything large is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from weitune.errors import InputError
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
