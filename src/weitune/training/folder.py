"""The run's folder: made whole in one moment, opened again for resuming.

    runs/zhenhuan/
      recipe.yaml  environment.json  data.json  events.jsonl
      checkpoint-100/ …  adapter/
"""

from __future__ import annotations

import json
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

from weitune.errors import RunError
from weitune.recipe.load import dump_recipe
from weitune.recipe.schema import Recipe
from weitune.training.checkpoint import publish

RECIPE, ENVIRONMENT, DATA, ADAPTER_FOLDER = "recipe.yaml", "environment.json", "data.json", "adapter"
_PACKAGES = ("weitune", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pyarrow")


def output_folder(recipe: Recipe) -> Path:
    """Return where the run of ``recipe`` goes: its ``output``, or ``runs/<model>-<time>``."""
    if recipe.output:
        return Path(recipe.output).expanduser()
    name = re.sub(r"[^\w.-]+", "-", Path(recipe.model.removeprefix("builtin:")).name).strip("-.")
    return Path("runs") / f"{name or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_free(folder: Path) -> None:
    """Raise RunError unless a new run can be put into ``folder``."""
    if (folder / RECIPE).exists():
        raise RunError(f"'{folder}' already holds a run",
                       f"Go on with it by `weitune train --resume {folder}`, or give another --output.")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RunError(f"'{folder}' is not an empty folder", "Give another --output, or empty it yourself.")


def create(folder: Path, recipe: Recipe, environment: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Make the run's folder with its first three files, all or nothing."""
    check_free(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
        write_json(partial / ENVIRONMENT, environment)
        write_json(partial / DATA, data)
        if folder.is_dir():
            folder.rmdir()  # empty, as checked
        publish(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"the run's folder '{folder}' cannot be made: {error}",
                       "Give an --output where you may write and that has room.") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8")


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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
