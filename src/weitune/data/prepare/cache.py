"""Prepared data in the cache folder, by fingerprint; a folder is complete or does not exist.

    ~/.cache/weitune/data/<fingerprint>/      (XDG_CACHE_HOME applies)
        examples.arrow                        of preferences, groups.safetensors too
        report.json

A folder is written aside and renamed, so a crash leaves nothing that looks finished. Everything here can be deleted.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weitune.errors import InputError
from weitune.files.cache import cache_folder
from weitune.files.publish import folder_written_aside, publish_unless_there

EXAMPLES = "examples.arrow"
GROUPS = "groups.safetensors"
"""Of preferences, beside their answers."""
REPORT = "report.json"
_PARTIAL = ".partial"
_STALE_SECONDS = 24 * 3600


def data_cache() -> Path:
    """Return the folder for prepared data."""
    return cache_folder() / "data"


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield a new folder to write to; when the block ends without an exception, it becomes ``target``.

    If another process was faster, its folder stays. Raises InputError if the folder cannot be written.
    """
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        with folder_written_aside(target, partial, publish_unless_there):
            yield partial
    except OSError as error:
        raise InputError("data.cache.cannot_write", folder=target.parent, strerror=error.strerror or error) from error


def _remove_stale(folder: Path) -> None:
    """Remove what a killed process left behind."""
    for partial in folder.glob(f"*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)
