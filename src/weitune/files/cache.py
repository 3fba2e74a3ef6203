"""The cache folder: what weitune downloads or prepares, all of which can be made again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from weitune.errors import InputError
from weitune.messages import say


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
