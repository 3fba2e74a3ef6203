"""Searches in processes of their own, for tests and for bench/fault_searches.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.faults.processes import Process, Starter
from tests.faults.runs import Inputs

_KEYS = {"validation": 0.3, "train.batch_size": 2}


def start(folder: Path, starter: Starter, inputs: Inputs, epochs: int) -> Process:
    """Begin a search in ``folder``, or go on with the one that is there."""
    if folder.exists():
        arguments = ["--resume", str(folder)]
    else:
        tree = {key: value[0] if isinstance(value, list) else value for key, value in inputs.tree(folder).items()}
        arguments = [f"--{key}={value}" for key, value in {**tree, **_KEYS, "train.epochs": epochs}.items()]
    return starter.start(["tune", *arguments, "--device", "cpu"], folder.with_suffix(".log"))


def trials(folder: Path) -> list[dict[str, Any]]:
    """Return every trial that is done with its losses, but without the time that it took."""
    path = folder / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in whole]
