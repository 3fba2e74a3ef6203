"""Checkpoints that exist only when they are complete.

    run/
      checkpoint-100/
        adapter_config.json  adapter_model.safetensors     a PEFT adapter as it is; of a whole model that is trained,
                                                           config.json and model.safetensors
        optimizer.safetensors                              AdamW's two moments and step of every trained tensor
        state.json                                         the step, the recipe, and what the run is computed from
        manifest.json                                      size and SHA-256 of every file, written last

A checkpoint is written aside, flushed, read back and compared with what was meant, and renamed (:mod:`.disk`).
Everything in it is safetensors and JSON: nothing here can run code when it is read. This module knows files and bytes
only; what is in them is made by :mod:`.snapshot`.

Cost: every byte is hashed and read back once when written, and hashed once when verified.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitune.model.file_names import ADAPTER_FILES, MODEL_FILES
from weitune.run import disk

MANIFEST, STATE = "manifest.json", "state.json"
OPTIMIZER = "optimizer.safetensors"
ADAPTER_CONFIG, ADAPTER = ADAPTER_FILES
PUBLISHED = (ADAPTER_FILES, MODEL_FILES)
"""What a run is for, in one of two kinds."""
FILES = (ADAPTER_CONFIG, ADAPTER, OPTIMIZER, STATE)
"""What the checkpoint of an adapter has, besides its manifest."""
_INVENTORIES = [{*names, OPTIMIZER, STATE} for names in PUBLISHED]

_FORMAT = "weitune checkpoint 1"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that has a checkpoint's name; :func:`fault_of` tells whether it is one."""

    folder: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        """What the run knew of itself after ``step`` steps."""
        state: dict[str, Any] = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        return state


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """Return every folder of ``run`` with a checkpoint's name, oldest first."""
    named = ((_NAME.fullmatch(folder.name), folder) for folder in run.glob("checkpoint-*"))
    found = [Checkpoint(folder, int(match[1])) for match, folder in named if match and folder.is_dir()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def write_checkpoint(run: Path, step: int, files: Iterable[tuple[str, bytes]]) -> Checkpoint:
    """Write ``files`` (name and contents, taken one at a time) as the checkpoint after ``step`` steps.

    Raises OSError if the system refuses or does not give back what was written; then there is no such checkpoint, and
    nothing else has changed.
    """
    target = run / f"checkpoint-{step}"
    with disk.folder_written_aside(target) as partial:
        inventory = {}
        for name, data in files:
            disk.write_file(partial / name, data)
            inventory[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        disk.write_file(partial / MANIFEST, _manifest(step, inventory))
        fault = fault_of(Checkpoint(partial, step))
        if fault:
            raise OSError(f"the disk does not give back what was written to it: {fault}")
    return Checkpoint(target, step)


def fault_of(checkpoint: Checkpoint) -> str:
    """Return what is wrong with the files of a checkpoint, or nothing if every bit is as it was written."""
    try:
        files = read_manifest(checkpoint)
        for name, expected in files.items():
            path = checkpoint.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}"
            if _sha256(path) != expected["sha256"]:
                return f"{name} is not what was written: its SHA-256 differs"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def read_manifest(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return size (``bytes``) and ``sha256`` of every file of a checkpoint.

    Raises FileNotFoundError, or ValueError if the manifest is not, to the last bit, one that weitune wrote for it.
    """
    written = (checkpoint.folder / MANIFEST).read_bytes()
    try:
        files = {
            name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in json.loads(written)["files"].items()
        }
        whole = set(files) in _INVENTORIES and written == _manifest(checkpoint.step, files)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{MANIFEST} is not what was written")
    return files


def newest_good(run: Path) -> tuple[Checkpoint | None, list[tuple[Checkpoint, str]]]:
    """Return the newest checkpoint that verifies, and the newer ones that do not, each with its fault."""
    passed_over: list[tuple[Checkpoint, str]] = []
    for checkpoint in reversed(list_checkpoints(run)):
        fault = fault_of(checkpoint)
        if not fault:
            return checkpoint, passed_over
        passed_over.append((checkpoint, fault))
    return None, passed_over


def set_aside(checkpoint: Checkpoint) -> Path:
    """Rename a faulty checkpoint, so that it takes no good one's place, and return its new name. Nothing is deleted."""
    number, target = 1, checkpoint.folder.with_name(f"{checkpoint.folder.name}.damaged")
    while target.exists():
        number += 1
        target = checkpoint.folder.with_name(f"{checkpoint.folder.name}.damaged-{number}")
    return checkpoint.folder.rename(target)


def publish_adapter(checkpoint: Checkpoint, target: Path) -> None:
    """Make ``target`` a folder with the adapter of ``checkpoint``, bit for bit, all or nothing.

    Does nothing if it is that already. Raises OSError if the system refuses.
    """
    files = read_manifest(checkpoint)
    names = [name for name in files if name not in {OPTIMIZER, STATE}]
    if all((target / name).is_file() and _sha256(target / name) == files[name]["sha256"] for name in names):
        return
    with disk.folder_written_aside(target) as partial:
        for name in names:
            disk.write_file(partial / name, (checkpoint.folder / name).read_bytes())


def _manifest(step: int, files: dict[str, dict[str, Any]]) -> bytes:
    """Return the one way to write a manifest down, so that a changed bit anywhere shows."""
    return (json.dumps({"format": _FORMAT, "step": step, "files": files}, indent=2) + "\n").encode()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
