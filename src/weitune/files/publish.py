"""Completeness is published last: what is written aside gets its name once every byte is on the disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


def publish(partial: Path, target: Path) -> None:
    """Flush every file of ``partial`` to the disk, then give the folder its name. An earlier ``target`` is replaced."""
    for path in (*partial.rglob("*"), partial):
        flush(path)
    if target.exists():
        outdated = target.with_name(f".{target.name}.outdated")
        shutil.rmtree(outdated, ignore_errors=True)
        target.rename(outdated)
        partial.rename(target)
        flush(target.parent)  # or a power cut could bring the old name back without the files
        shutil.rmtree(outdated, ignore_errors=True)
    else:
        partial.rename(target)
        flush(target.parent)


def publish_file(partial: Path, target: Path) -> None:
    """Flush the file ``partial`` to the disk, then give it its name. ``target`` is replaced if it exists."""
    flush(partial)
    partial.replace(target)
    flush(target.parent)


def publish_text(content: str, target: Path) -> None:
    """Give the file ``target`` the text ``content`` in one moment; half a surrogate pair is written as its escape.

    Raises OSError if the system refuses.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.write_text(content, encoding="utf-8", errors="backslashreplace")
    publish_file(partial, target)


def flush(path: Path) -> None:
    """Wait until ``path`` is on the disk; folders too, where the system can flush them."""
    windows = os.name == "nt"  # opens no folders, and flushes only what is open for writing
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in {errno.EINVAL, errno.ENOTSUP}):  # some network file systems
            raise
    finally:
        os.close(descriptor)
