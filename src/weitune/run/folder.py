"""The run's folder: made whole in one moment, opened again for resuming.

runs/zhenhuan/
  recipe.yaml           the resolved recipe; what may change is written anew when the run goes on
  environment.json      versions, hardware, and the basis: fingerprints of all that decides the numbers
  data.json             the accounts of the data
  events.jsonl          what happened
  checkpoint-100/ …     adapter and training state
  adapter/              the final adapter
  .lock                 held by the process that trains
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from weitune.errors import RecipeError, RunError
from weitune.files.json_text import json_text
from weitune.files.paths import user_path
from weitune.files.publish import flush
from weitune.recipe.load import dump_recipe
from weitune.recipe.schema import Recipe
from weitune.run import disk, events, lock
from weitune.shell import shell_command

RECIPE, ENVIRONMENT, DATA, ADAPTER_FOLDER = "recipe.yaml", "environment.json", "data.json", "adapter"
_PACKAGES = ("weitune", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pyarrow")


def output_folder(recipe: Recipe) -> Path:
    """Return where the run of ``recipe`` goes: its ``output``, or ``runs/<model>-<time>``."""
    if recipe.output:
        return user_path(recipe.output)
    name = re.sub(r"[^\w.-]+", "-", Path(recipe.model.removeprefix("builtin:")).name).strip("-.")
    return Path("runs") / f"{name or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_free(folder: Path) -> None:
    """Raise RunError unless a new run can be put into ``folder``."""
    if (folder / RECIPE).exists():
        raise RunError(
            "run.folder.already_holds_run", folder=folder, command=shell_command("train", "--resume", folder)
        )
    no_folder = (folder.exists() or folder.is_symlink()) and not folder.is_dir()
    if no_folder or (folder.is_dir() and not all(map(_left_behind, folder.iterdir()))):
        raise RunError("run.folder.not_empty_folder", folder=folder)


def holds_run(folder: Path) -> bool:
    """Return whether ``folder`` holds a run. Raises RunError if it does not, and no new run can be put into it."""
    if (folder / RECIPE).is_file():
        return True
    check_free(folder)
    return False


def _left_behind(path: Path) -> bool:
    """Return whether ``path`` is a file that a killed process may leave in a run's folder, and nothing else is."""
    return path.name == lock.FILE or disk.is_left_behind(path)


def check_named(recipe: Recipe) -> None:
    """Raise RecipeError unless ``recipe`` says where its run goes: the default name has the time in it."""
    if not recipe.output:
        raise RecipeError("run.folder.resume_existing_needs_fixed")


def check_run(folder: Path) -> None:
    """Raise RunError unless ``folder`` holds a run."""
    if not (folder / RECIPE).is_file():
        raise RunError("run.folder.holds_no_run_resume", folder=folder, recipe=RECIPE)


def create(folder: Path, recipe: Recipe, environment: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Make the run's folder with its first files, all or nothing. Raises RunError if that cannot be.

    Of two processes that do this at the same time, one gets the folder.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    files = {RECIPE: dump_recipe(recipe).encode(), ENVIRONMENT: as_json(environment), DATA: as_json(data)}
    try:
        disk.remove(partial)
        partial.mkdir(parents=True)
        for name, contents in {**files, events.FILE: b""}.items():
            disk.write_file(partial / name, contents)
            flush(partial / name)
        flush(partial)
        left = list(folder.iterdir()) if folder.is_dir() else []  # listed first: what comes later is another's run
        check_free(folder)
        for path in left:
            disk.remove(path)
        if os.name == "nt" and folder.is_dir():
            folder.rmdir()  # elsewhere, an empty folder gives way, and only an empty one
        partial.rename(folder)
        flush(folder.parent)
        for left_behind in folder.parent.glob(f".{folder.name}.*.partial"):  # by a process that was killed
            disk.remove(left_behind)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        check_free(folder)
        raise RunError("run.folder.run_s_folder_cannot", folder=folder, error=error) from None


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what :func:`create` wrote down. Raises RunError if it cannot be read."""
    path = folder / ENVIRONMENT
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError("run.folder.cannot_read", path=path, error=error) from None
    return found


def update_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe that a run goes on with, if it is another. Raises OSError if the system refuses."""
    contents = dump_recipe(recipe).encode()
    if (folder / RECIPE).read_bytes() != contents:
        disk.replace_file(folder / RECIPE, contents)


def as_json(value: Mapping[str, Any]) -> bytes:
    """Return ``value`` as indented JSON."""
    return (json_text(value, indent=2, default=str) + "\n").encode()


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return versions and hardware, for whoever wants to repeat the run."""
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    if device.type == "cuda":
        found["accelerators"] = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return found


def machine_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what of :func:`describe_machine` is another now: the run may go on, its last bits may differ."""
    old, new = ({**machine, **machine.get("packages", {})} for machine in (before, now))
    keys = ("device", "processor", "threads", *_PACKAGES)
    return [f"{key} {old.get(key)} before, {new.get(key)} now" for key in keys if old.get(key) != new.get(key)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
