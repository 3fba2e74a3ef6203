"""Checkpoints of a few bytes, for tests of files alone."""

from __future__ import annotations

import json
from pathlib import Path

from weitune.model.file_names import ADAPTER_FILES
from weitune.run.checkpoint import Checkpoint, write_checkpoint
from weitune.run.names import OPTIMIZER, STATE

ADAPTER_CONFIG, ADAPTER = ADAPTER_FILES
FILES = (*ADAPTER_FILES, OPTIMIZER, STATE)
"""What the checkpoint of an adapter has, besides its manifest."""


def files_of(step: int, metric: float | None = None) -> list[tuple[str, bytes]]:
    """Return the files of a checkpoint whose contents depend on ``step``."""
    state = {"step": step, "metric": metric}
    return [
        (ADAPTER_CONFIG, b'{"r": 8}'),
        (ADAPTER, f"adapter {step} ".encode() * 9),
        (OPTIMIZER, f"moments {step} ".encode() * 17),
        (STATE, json.dumps(state).encode()),
    ]


def save(run: Path, step: int, metric: float | None = None) -> Checkpoint:
    return write_checkpoint(run, step, files_of(step, metric))


def is_intact(checkpoint: Checkpoint | None) -> bool:
    """Return whether a checkpoint has, to the bit, what was saved, judged without weitune."""
    if checkpoint is None:
        return False
    found = {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()}
    metric = json.loads(found[STATE])["metric"]
    return all(found.get(name) == data for name, data in files_of(checkpoint.step, metric))
