"""The name of a run: that of its folder, as it was given."""

from __future__ import annotations

import os
from pathlib import Path


def given_name(folder: Path) -> str:
    """Return the last part of ``folder``; of a symbolic link its own name, not that of the folder it leads to."""
    if ".." in folder.parts:  # what this stands for depends on where links lead
        folder = folder.resolve()
    return Path(os.path.abspath(folder)).name  # noqa: PTH100  (Path.resolve would follow links)
