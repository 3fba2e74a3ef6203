"""Writing and deleting in a run's folder so that a kill, a full disk or a power cut leaves nothing half done.

A name means "complete". So everything is written under a hidden name, flushed, and only then renamed
(:mod:`weitune.files.publish`); what goes away gets a hidden name first, so that it is never half there under its own:

    write    .checkpoint-100.partial/     ── flushed, renamed ──▶  checkpoint-100/
    delete   checkpoint-100/              ── renamed ──▶  .checkpoint-100.outdated/  ── deleted

All of it goes through the functions of :mod:`os`, one call at a time: tests count them and stop at each. Every function
raises OSError if the system refuses, and leaves at worst hidden names behind, which :func:`tidy` removes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weitune.files.publish import flush, publish, publish_file

BINARY: int = getattr(os, "O_BINARY", 0)
"""Flag of :func:`os.open`: Windows would translate line ends."""
_BLOCK_BYTES = 1 << 24
_LEFT_BEHIND = re.compile(r"\.[\w.-]+\.(partial|outdated)")


def hidden(target: Path, kind: str) -> Path:
    """Return the name under which ``target`` is ``partial`` or ``outdated``."""
    return target.with_name(f".{target.name}.{kind}")


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, without waiting for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[:_BLOCK_BYTES]) :]
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Give the file ``path`` new contents in one moment."""
    partial = hidden(path, "partial")
    write_file(partial, data)
    publish_file(partial, path)


@contextmanager
def folder_written_aside(target: Path) -> Iterator[Path]:
    """Give a new folder to write into, which becomes ``target`` when the block ends well; an older one goes away.

    On an OSError its room is given back.
    """
    partial = hidden(target, "partial")
    remove(partial)
    partial.mkdir()
    try:
        yield partial
        publish(partial, target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def discard(folder: Path) -> None:
    """Delete ``folder``: it loses its name at once, then its files."""
    outdated = hidden(folder, "outdated")
    remove(outdated)
    folder.rename(outdated)
    flush(folder.parent)  # or a power cut could bring the name back without the files
    remove(outdated)


def remove(path: Path) -> None:
    """Delete the file ``path``, or the folder and all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def is_left_behind(path: Path) -> bool:
    """Return whether ``path`` has the name of something half written or half deleted."""
    return _LEFT_BEHIND.fullmatch(path.name) is not None


def tidy(run: Path) -> None:
    """Delete what a process that was killed left half written or half deleted in ``run``."""
    for path in run.glob(".*"):
        if is_left_behind(path):
            remove(path)


def free_bytes(folder: Path) -> int | None:
    """Return how many bytes a user may still write where ``folder`` lies, or None if the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
