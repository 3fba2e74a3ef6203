"""Is a checkpoint still what was written? Its manifest has the size and the SHA-256 of every file.

A folder without a manifest was not written by weitune, and nothing is known of it.

Cost: every byte of the checkpoint is read and hashed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


def damage_of(checkpoint: Path) -> str:
    """Return what is wrong with the files of ``checkpoint``; nothing if they are as its manifest says."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        return ""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"].items()
        found = (_damage(checkpoint / Path(name).name, entry["bytes"], entry["sha256"]) for name, entry in files)
        return next((damage for damage in found if damage), "")
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"


def _damage(path: Path, size: int, sha256: str) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return "" if digest.hexdigest() == sha256 else f"{path.name} is not what was written: its SHA-256 differs"
