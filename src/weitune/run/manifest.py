"""Verify a checkpoint against its manifest, which has the size and the SHA-256 of every file.

A folder without a manifest was not written by weitune and cannot be verified.

Cost: every byte of the checkpoint is read and hashed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from weitune.messages import say
from weitune.run.names import MANIFEST


def damage_of(checkpoint: Path) -> str:
    """Return what is wrong with the files of ``checkpoint``; empty if they match its manifest, or it has none."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        return ""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"].items()
        damages = (file_damage(checkpoint / Path(name).name, entry["bytes"], entry["sha256"]) for name, entry in files)
        return next((damage for damage in damages if damage), "")
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return say("run.manifest.not_as_written", name=MANIFEST)


def file_damage(path: Path, size: int, sha256: str) -> str:
    """Return how a file differs from one of ``size`` bytes with this ``sha256``; empty if it does not."""
    if not path.is_file():
        return say("run.manifest.file_missing", name=path.name)
    if (actual := path.stat().st_size) != size:
        return say("run.manifest.file_of_other_size", name=path.name, actual=actual, size=size)
    return "" if sha256_of(path) == sha256 else say("run.manifest.file_changed", name=path.name)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
