"""Paths and hub ids as people write them."""

from __future__ import annotations

import os
from pathlib import Path

HUB_ID = r"[\w.-]+/[\w.-]+"
"""The form of a repository's id on a hub, USER/NAME, as a regular expression."""


def user_path(text: str) -> Path:
    """Return ``text`` as a path, with ``~`` for the home folder; a ``~name`` that is no user's stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  (pathlib raises for a name that is no user's)
