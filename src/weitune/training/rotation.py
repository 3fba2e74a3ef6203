"""Which checkpoints stay: the newest good ones and the best.

    step      100   200   300   400   500        keep 2, metric = validation loss
    metric    2.1   1.7   1.9   2.0   2.2
                    best        ─ newest ─       100 and 300 go

A checkpoint counts as good when its files verify now, so one that rotted on the disk takes no good one's place. Only a
folder goes that weitune wrote, which its manifest proves, and in which nobody has put anything.

Cost: every checkpoint that stays is read and hashed.
"""

from __future__ import annotations

import math
from pathlib import Path

from weitune.training import disk
from weitune.training.checkpoint import MANIFEST, Checkpoint, fault_of, list_checkpoints, read_manifest


def rotate(run: Path, keep: int) -> list[tuple[Checkpoint, str]]:
    """Delete all but the ``keep`` newest good checkpoints of ``run`` and the best one.

    Returns the faulty ones that it met among the newest, which it leaves alone. Raises OSError if the system refuses.
    """
    newest: list[Checkpoint] = []
    faulty: list[tuple[Checkpoint, str]] = []
    older = list_checkpoints(run)
    while older and len(newest) < keep:
        checkpoint = older.pop()
        fault = fault_of(checkpoint)
        if fault:
            faulty.append((checkpoint, fault))
        else:
            newest.append(checkpoint)
    if len(newest) < keep:
        return faulty
    best = _best(older, below=min(map(metric_of, newest)))
    for checkpoint in older:
        if checkpoint != best and _is_ours(checkpoint):
            disk.discard(checkpoint.folder)
    return faulty


def metric_of(checkpoint: Checkpoint) -> float:
    """Return the metric of a checkpoint, of which the lowest is the best; infinity if it was not measured."""
    try:
        metric = checkpoint.state.get("metric")
    except (OSError, ValueError):
        return math.inf
    return metric if isinstance(metric, float) and math.isfinite(metric) else math.inf


def _best(checkpoints: list[Checkpoint], below: float) -> Checkpoint | None:
    """Return the good checkpoint with the lowest metric, if that is lower than ``below``."""
    for checkpoint in sorted(checkpoints, key=metric_of):
        if metric_of(checkpoint) >= below:
            return None
        if not fault_of(checkpoint):
            return checkpoint
    return None


def _is_ours(checkpoint: Checkpoint) -> bool:
    """Return whether weitune wrote this folder and everything in it."""
    try:
        ours = {MANIFEST, *read_manifest(checkpoint)}
        return {entry.name for entry in checkpoint.folder.iterdir()} <= ours
    except (OSError, ValueError):
        return False
