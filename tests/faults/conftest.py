"""What the tests of faults share: no waiting for the real disk, and one tiny model with data and an undisturbed run."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fsync return at once: the fault layer counts it and knows what it made certain; the disk under it is real."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
