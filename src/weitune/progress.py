"""The callbacks through which work reports its progress and notes to whoever started it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, "int | None"], None]
"""Called with the units done and the units in all, which may be unknown (None)."""
Stage = Callable[[str], Progress]
"""Called with the title of the next stage; returns the callback for the progress of that stage."""

Note = Callable[[str], None]
"""Called with a line for the user."""
