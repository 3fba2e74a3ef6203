"""How work reports how far it is; the command line draws bars from it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, "int | None"], None]
"""Called with the units done and the units in all, which may be unknown (None)."""
Stage = Callable[[str], Progress]
"""Called with the title of the next piece of work; returns what that work reports its progress to."""

Note = Callable[[str], None]
"""Called with a line for the user."""
