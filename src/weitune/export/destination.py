"""The folder of an export, which exists only once it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weitune.errors import RunError
from weitune.files.json_files import json_object
from weitune.files.publish import folder_written_aside, own_partial, remove_abandoned

MARK = "weitune.json"
"""The file in every export that names its run, adapter and base."""


def check_destination(folder: Path, force: bool, kind: str | None = None) -> None:
    """Raise RunError unless an export can be put into ``folder``; with ``force``, it may hold an earlier export.

    With ``kind``, the earlier export must be of that ``format``.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir() or not (folder / MARK).is_file():
            raise RunError("export.destination.not_an_export", folder=folder)
        if kind is not None and json_object(folder / MARK).get("format") != kind:
            raise RunError("export.destination.other_export", folder=folder)
        if not force:
            raise RunError("export.destination.holds_an_export", folder=folder)


def free_for_failed(folder: Path) -> Path:
    """Return where a failed export of ``folder`` is kept: in place of an earlier one, and of nothing else."""
    folder = Path(os.path.realpath(folder))
    names = (f"{folder.name}.failed", *(f"{folder.name}.failed-{n}" for n in range(2, 1000)))
    places = (folder.with_name(name) for name in names)
    return next(place for place in places if not os.path.lexists(place) or (place / MARK).is_file())


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to ``folder`` after the block. Raises RunError if it cannot be written.

    If ``folder`` is a symbolic link, the folder that it leads to is replaced.
    """
    folder = Path(os.path.realpath(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        with folder_written_aside(folder, own_partial(folder)) as partial:
            yield partial
    except OSError as error:
        raise RunError("export.destination.cannot_be_written", folder=folder, reason=error) from error
