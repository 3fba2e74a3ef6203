"""The names of the files in a run's folder.

runs/zhenhuan/
  recipe.yaml           the resolved recipe: its presence makes the folder a run
  environment.json      versions, hardware, and the basis: fingerprints of everything that determines the numbers
  data.json             the report of the data (:mod:`.data_record`)
  kept.safetensors      the examples that are kept (`keep`), if the recipe keeps any
  reference.safetensors the log-probabilities of the answers under the reference model (`preference`), if it has one
  events.jsonl          what happened, one JSON object a line
  checkpoint-100/       an adapter or a whole model (:mod:`weitune.model.file_names`), and
    optimizer.safetensors   the optimizer state
    state.json              the step, the recipe, the basis
    manifest.json           size and SHA-256 of every file, written last
  adapter/              the final adapter, or the model
  outcome.json          how the last process that trained here ended (:mod:`weitune.training.session`)
  stop                  made by a user: training stops after the step at hand, with a checkpoint; before, at once
  .lock                 held by the process that trains
  evaluation.json  report.html  answers.json      written by `eval` and `demo`
  comparisons.json                                written by `compare`: the pages on which the run is compared
  combined.json                                   written by `merge-adapters`
"""

from __future__ import annotations

import os
import re
from pathlib import Path

RECIPE, ENVIRONMENT, DATA, EVENTS, LOCK = "recipe.yaml", "environment.json", "data.json", "events.jsonl", ".lock"
EVALUATION, REPORT, ANSWERS, COMBINED = "evaluation.json", "report.html", "answers.json", "combined.json"
COMPARISONS = "comparisons.json"
OPTIMIZER, STATE, MANIFEST = "optimizer.safetensors", "state.json", "manifest.json"
KEPT, REFERENCE = "kept.safetensors", "reference.safetensors"
OUTCOME, STOP = "outcome.json", "stop"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def is_part_of_run(path: Path) -> bool:
    """Return whether ``path`` lies in a run's folder, and not merely beside a recipe."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  (keeps links); the parent of "." is "."
    return (path.parent / RECIPE).is_file() and (path.parent / ENVIRONMENT).is_file()


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of the checkpoint after ``step`` steps."""
    return f"checkpoint-{step}"


def checkpoint_step(name: str) -> int | None:
    """Return the step of the checkpoint whose folder is called ``name``; None if that is not a checkpoint's name."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def checkpoint_folders(run: Path) -> list[tuple[int, Path]]:
    """Return step and path of every folder of ``run`` with a checkpoint's name, oldest first."""
    folders = ((checkpoint_step(path.name), path) for path in (run.iterdir() if run.is_dir() else ()))
    return sorted((step, path) for step, path in folders if step is not None and path.is_dir())
