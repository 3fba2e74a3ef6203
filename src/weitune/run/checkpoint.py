"""Checkpoints that exist only when they are complete.

    run/
      checkpoint-100/
        adapter_config.json  adapter_model.safetensors     a PEFT adapter (in full fine-tuning, config.json
                                                           and model.safetensors)
        optimizer.safetensors                              AdamW's two moments and step of every trained tensor
        state.json                                         the step, the recipe, and what the run is computed from
        manifest.json                                      size and SHA-256 of every file, written last

A checkpoint is written under a hidden name, flushed, read back, compared, and renamed. It has only safetensors and JSON
files, so reading it cannot run code. This module handles files and bytes; their contents come from
:mod:`weitune.training.resume.snapshot`.

Cost: every byte is hashed and read back once when written, and hashed once when verified.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitune.files.json_files import json_bytes
from weitune.files.publish import folder_written_aside, write_bytes
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, MODEL_FILES
from weitune.run.history import finite
from weitune.run.manifest import damage_of, file_damage, sha256_of
from weitune.run.names import MANIFEST, OPTIMIZER, STATE, checkpoint_folders, checkpoint_name, checkpoint_step

_INVENTORIES = [{*names, OPTIMIZER, STATE} for names in (ADAPTER_FILES, MODEL_FILES)]
"""The files of a checkpoint of an adapter or of a whole model, besides the manifest."""
_FORMAT = "weitune checkpoint 1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that has a checkpoint's name; :func:`fault_of` tells whether it is one."""

    folder: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        return state

    @property
    def metric(self) -> float | None:
        """Its validation loss; None if that was not measured, is not finite, or cannot be read."""
        try:
            return finite(self.state.get("metric"))
        except (OSError, ValueError, AttributeError):
            return None


def restore_replaced(run: Path) -> None:
    """Give checkpoints of ``run`` their names back that a kill took while they were replaced, if they are intact."""
    for path in run.glob(".*.outdated"):
        target = path.with_name(path.name.removeprefix(".").removesuffix(".outdated"))
        if (
            checkpoint_step(target.name) is not None
            and not target.exists()
            and (path / MANIFEST).is_file()
            and not damage_of(path)
        ):
            path.rename(target)


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """Return every folder of ``run`` with a checkpoint's name, oldest first."""
    return [Checkpoint(folder, step) for step, folder in checkpoint_folders(run)]


def write_checkpoint(run: Path, step: int, files: Iterable[tuple[str, bytes]]) -> Checkpoint:
    """Write ``files`` (name and contents, taken one at a time) as the checkpoint after ``step`` steps.

    Raises OSError if writing fails or reading back gives other bytes; then nothing has changed.
    """
    target = run / checkpoint_name(step)
    with folder_written_aside(target) as partial:
        inventory = {}
        for name, data in files:
            write_bytes(partial / name, data)
            inventory[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_bytes(partial / MANIFEST, _manifest(step, inventory))
        fault = fault_of(Checkpoint(partial, step))
        if fault:
            raise OSError(say("run.checkpoint.not_read_back", fault=fault))
    return Checkpoint(target, step)


def fault_of(checkpoint: Checkpoint) -> str:
    """Return what is wrong with the files of a checkpoint; empty if every bit is as it was written."""
    try:
        files = read_manifest(checkpoint)
        damages = (file_damage(checkpoint.folder / name, f["bytes"], f["sha256"]) for name, f in files.items())
        return next((damage for damage in damages if damage), "")
    except FileNotFoundError:
        return say("run.manifest.file_missing", name=MANIFEST)
    except (OSError, ValueError) as error:
        return str(error)


def read_manifest(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return size (``bytes``) and ``sha256`` of every file of a checkpoint.

    Raises FileNotFoundError, or ValueError if a single bit of the manifest differs from what weitune writes.
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
        raise ValueError(say("run.manifest.not_as_written", name=MANIFEST))
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
    """Rename a faulty checkpoint, so that its name is free for a good one, and return its new path."""
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
    if all((target / name).is_file() and sha256_of(target / name) == files[name]["sha256"] for name in names):
        return
    with folder_written_aside(target) as partial:
        for name in names:
            write_bytes(partial / name, (checkpoint.folder / name).read_bytes())


def _manifest(step: int, files: dict[str, dict[str, Any]]) -> bytes:
    return json_bytes({"format": _FORMAT, "step": step, "files": files})
