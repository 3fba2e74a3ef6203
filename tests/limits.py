"""How long a test waits for something that has to happen: only a hang takes longer, however busy the machine is."""

HANG_SECONDS = 1500.0
"""Shorter than pytest's own limit for a test (pyproject.toml), so that the place that waited shows its message."""
