"""Where an export goes: a folder that is written aside and exists once it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weitune.errors import RunError
from weitune.files.json_text import json_text
from weitune.files.publish import publish

MARK = "weitune.json"
"""Lies in every export: what it was made from."""


def check_destination(folder: Path, force: bool) -> None:
    """Raise RunError unless an export can be put into ``folder``; with ``force``, it may hold an earlier export."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir() or not (folder / MARK).is_file():
            raise RunError("export.destination.exists_not_export_weitune", folder=folder)
        if not force:
            raise RunError("export.destination.already_holds_export", folder=folder)


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which gets the name ``folder`` if the block ends well and goes away if not."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        publish(partial, folder)
    except OSError as error:
        raise RunError("export.destination.export_cannot_written", folder=folder, error=error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON, the same bytes every time."""
    path.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")
