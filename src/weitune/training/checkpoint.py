"""Checkpoints that exist only when they are complete.

    run/
      .checkpoint-100.partial/      written aside …
      checkpoint-100/               … and renamed when every byte is on the disk
        adapter_config.json  adapter_model.safetensors     a PEFT adapter as it is
        optimizer.safetensors                              AdamW's two moments of every trained tensor
        state.json                                         the step, and fingerprints of what the run depends on
        manifest.json                                      size and SHA-256 of every file, written last

Randomness is a function of (seed, step), and so is the order of the examples: nothing else need be kept. All is
safetensors and JSON; nothing here can run code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weitune.errors import RunError

if TYPE_CHECKING:
    from peft import PeftModel

MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
ADAPTER = "adapter_model.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on the disk."""

    folder: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        """What :func:`save_checkpoint` was given as ``state``."""
        state: dict[str, Any] = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        return state


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` steps lies."""
    return run / f"checkpoint-{step}"


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """Return a run's checkpoints, oldest first. A folder without a manifest is not one."""
    found = []
    for folder in run.glob("checkpoint-*"):
        match = _NAME.fullmatch(folder.name)
        if match and (folder / MANIFEST).is_file():
            found.append(Checkpoint(folder, int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def save_checkpoint(
    run: Path, step: int, model: PeftModel, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> Checkpoint:
    """Write ``checkpoint-{step}``: aside, flushed, renamed. Raises OSError and leaves no such folder if that fails."""
    target = checkpoint_folder(run, step)
    partial = run / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_adapter(partial, model)
        save_file(_moments(model, optimizer), partial / OPTIMIZER)
        _write_json(partial / STATE, {"step": step, **state})
        _write_json(partial / MANIFEST, {"files": _inventory(partial)})
        publish(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Checkpoint(target, step)


def write_adapter(folder: Path, model: PeftModel) -> None:
    """Write ``model``'s adapter to ``folder`` as PEFT does, without asking any hub about the base model."""
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def publish(partial: Path, target: Path) -> None:
    """Flush every file of ``partial`` to the disk, then give the folder its name. ``target`` is replaced if it exists."""
    for path in (*partial.rglob("*"), partial):
        _flush(path)
    if target.exists():
        outdated = target.with_name(f".{target.name}.outdated")
        shutil.rmtree(outdated, ignore_errors=True)
        target.rename(outdated)
        partial.rename(target)
        shutil.rmtree(outdated, ignore_errors=True)
    else:
        partial.rename(target)
    _flush(target.parent)


def fault_of(checkpoint: Checkpoint) -> str:
    """Return what is wrong with the files of a checkpoint, or nothing if they are as they were written."""
    try:
        files = json.loads((checkpoint.folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = checkpoint.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if _sha256(path) != expected["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return "" if {STATE, OPTIMIZER, ADAPTER} <= files.keys() else f"{MANIFEST} does not list every file"


def newest_good(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files are as they were written, and why newer ones were passed over."""
    passed_over = []
    for checkpoint in reversed(list_checkpoints(run)):
        fault = fault_of(checkpoint)
        if not fault:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint.folder.name} is passed over: {fault}")
    return None, passed_over


def load_checkpoint(checkpoint: Checkpoint, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Put the adapter and the moments of ``checkpoint`` into ``model`` and ``optimizer``, bit by bit.

    Raises RunError, naming every tensor that does not fit, before anything has changed.
    """
    from peft import get_peft_model_state_dict

    adapter = load_file(checkpoint.folder / ADAPTER)
    moments = load_file(checkpoint.folder / OPTIMIZER)
    wanted_adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted_moments = {f"{name}.{kind}": parameter for name, parameter in _trained(model) for kind in _MOMENTS}
    _check_fit(checkpoint, ADAPTER, adapter, wanted_adapter)
    _check_fit(checkpoint, OPTIMIZER, moments, wanted_moments)
    step = torch.tensor(float(checkpoint.state["step"]), dtype=torch.float32)
    with torch.no_grad():
        for name, tensor in wanted_adapter.items():
            tensor.copy_(adapter[name])
    for name, parameter in _trained(model):
        optimizer.state[parameter] = {
            "step": step.clone().to(parameter.device),
            **{kind: moments[f"{name}.{kind}"].to(parameter.device) for kind in _MOMENTS},
        }


def rotate(run: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints. A folder loses its manifest first: half deleted, it is none."""
    for checkpoint in list_checkpoints(run)[:-keep]:
        (checkpoint.folder / MANIFEST).unlink()
        shutil.rmtree(checkpoint.folder)


def _trained(model: PeftModel) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _moments(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{kind}": optimizer.state[parameter][kind].contiguous()
        for name, parameter in _trained(model)
        for kind in _MOMENTS
    }


def _check_fit(checkpoint: Checkpoint, file: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    problems = [f"{name}: missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name}: not part of this model" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name}: shape {tuple(found[name].shape)}, but the model has {tuple(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise RunError(f"{checkpoint.folder / file} does not fit the model; {len(problems)} tensors differ:\n  {shown}",
                       "Resume with the recipe and the model that the run began with.")


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Wait until ``path`` is on the disk; folders too, where the system can flush them."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
