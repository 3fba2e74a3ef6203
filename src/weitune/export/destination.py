"""The folder of an export, which exists only once it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weitune.errors import RunError
from weitune.files.publish import folder_written_aside, own_partial, remove_abandoned

MARK = "weitune.json"
"""The file in every export that names its run, adapter and base."""


def check_destination(folder: Path, force: bool) -> None:
    """Raise RunError unless an export can be put into ``folder``; with ``force``, it may hold an earlier export."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir() or not (folder / MARK).is_file():
            raise RunError("export.destination.not_an_export", folder=folder)
        if not force:
            raise RunError("export.destination.holds_an_export", folder=folder)


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to ``folder`` after the block. Raises RunError if it cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        with folder_written_aside(folder, own_partial(folder)) as partial:
            yield partial
    except OSError as error:
        raise RunError("export.destination.cannot_be_written", folder=folder, reason=error) from error
