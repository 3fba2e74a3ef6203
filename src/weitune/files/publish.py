"""Write and delete files and folders atomically, so that a kill, a full disk or a power cut leaves nothing half done.

Everything is written under a hidden name, flushed, and only then renamed: a file that has its name is complete. A
folder gets a hidden name before it is deleted:

    write    .checkpoint-100.partial/     ── flushed, renamed ──▶  checkpoint-100/
    delete   checkpoint-100/              ── renamed ──▶  .checkpoint-100.outdated/  ── deleted

Tests count the calls of :mod:`os` and interrupt at each. Every function raises OSError if the system refuses, and
leaves at worst files with hidden names, which :func:`tidy` deletes.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BINARY: int = getattr(os, "O_BINARY", 0)
"""Flag of :func:`os.open`: without it, Windows translates line ends."""
_BLOCK_BYTES = 1 << 24
_RETRIES = 20 if os.name == "nt" else 0
_LEFT_BEHIND = re.compile(r"\.[\w.-]+\.(partial|outdated)")


def hidden(target: Path, kind: str) -> Path:
    """Return the name under which ``target`` is ``partial`` or ``outdated``."""
    return target.with_name(f".{target.name}.{kind}")


def own_partial(target: Path) -> Path:
    """Return a hidden name for ``target`` that no other process uses."""
    return hidden(target, f"{os.getpid()}.partial")


def process_exists(pid: int) -> bool:
    """Return whether a process of this machine has the number ``pid``."""
    if os.name == "nt":
        return True  # os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def put_in_place(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``. Windows refuses while somebody reads that: it is tried for a second."""
    for _ in range(_RETRIES):
        with suppress(PermissionError):
            partial.replace(target)
            return
        time.sleep(0.05)
    partial.replace(target)


def remove_abandoned(target: Path) -> None:
    """Delete the :func:`own_partial` files and folders for ``target`` of processes that no longer exist."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        pid = path.name.removeprefix(f".{target.name}.").removesuffix(".partial")
        if pid.isdecimal() and not process_exists(int(pid)):
            remove(path)


def publish(partial: Path, target: Path) -> None:
    """Flush every file of the folder ``partial``, then rename it to ``target``.

    An earlier ``target`` is replaced; it comes back if the last renaming fails or is interrupted.
    """
    flush_all(partial)
    outdated = hidden(target, "outdated")
    if target.exists():
        shutil.rmtree(outdated, ignore_errors=True)
        target.rename(outdated)
    try:
        partial.rename(target)
    except BaseException:
        if outdated.exists() and not target.exists():
            outdated.rename(target)
        raise
    flush(target.parent)  # or a power cut could bring the old name back without the files
    if outdated.exists():
        shutil.rmtree(outdated, ignore_errors=True)


def publish_new(partial: Path, target: Path) -> bool:
    """Flush the folder ``partial`` and rename it to ``target``; return False if another process's folder is there."""
    flush_all(partial)
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        return False
    return True


def publish_unless_there(partial: Path, target: Path) -> None:
    """Flush the folder ``partial`` and rename it to ``target``; if another process was faster, its folder stays."""
    if not publish_new(partial, target):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def folder_written_aside(
    target: Path, partial: Path | None = None, publish: Callable[[Path, Path], None] = publish
) -> Iterator[Path]:
    """Give an empty folder to write into, which becomes ``target`` when the block ends; after an error it is deleted.

    It is called ``partial`` meanwhile, or as :func:`hidden` says. ``publish`` flushes and renames it.
    """
    partial = partial or hidden(target, "partial")
    remove(partial)
    partial.mkdir()
    try:
        yield partial
        publish(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def file_written_aside(target: Path) -> Iterator[Path]:
    """Give the path of a file to write, which becomes ``target`` when the block ends; after an error it is deleted."""
    partial = own_partial(target)
    try:
        yield partial
        flush(partial)
        put_in_place(partial, target)
        flush(target.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def publish_bytes(data: bytes, target: Path) -> None:
    """Replace the contents of the file ``target`` atomically."""
    with file_written_aside(target) as partial:
        write_bytes(partial, data)


def publish_text(content: str, target: Path) -> None:
    """Write ``content`` as UTF-8 to the file ``target`` atomically; half a surrogate pair becomes its escape."""
    publish_bytes(content.encode(errors="backslashreplace"), target)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, without waiting for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[:_BLOCK_BYTES]) :]
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Wait until ``folder`` and everything in it is on the disk."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


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


def discard(folder: Path) -> None:
    """Rename ``folder`` to a hidden name, then delete it."""
    outdated = hidden(folder, "outdated")
    remove(outdated)
    folder.rename(outdated)
    flush(folder.parent)  # or a power cut could bring the name back without the files
    remove(outdated)


def remove(path: Path) -> None:
    """Delete the file, link or folder ``path`` if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def is_left_behind(path: Path) -> bool:
    """Return whether ``path`` has the name of something half written or half deleted."""
    return _LEFT_BEHIND.fullmatch(path.name) is not None


def tidy(folder: Path) -> None:
    """Delete what a killed process left half written or half deleted in ``folder``."""
    for path in folder.glob(".*"):
        if is_left_behind(path):
            remove(path)
