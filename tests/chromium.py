"""The browser that tests look at pages with."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def sandbox_arguments() -> list[str]:
    """Return what the superuser has to add to Chromium's command line."""
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def chromium() -> str:
    """Return the path of a Chromium that starts; skip the test at hand if there is none."""
    path = _starting()
    if path is None:
        pytest.skip("there is no Chromium here that starts")
    return path


@cache
def _starting() -> str | None:
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        return None
    command = [path, "--headless", "--disable-gpu", *sandbox_arguments(), "--dump-dom", "about:blank"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return None
    return path if done.returncode == 0 and b"<html" in done.stdout else None
