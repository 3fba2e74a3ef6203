"""Delete old checkpoints; keep the newest good ones and the best.

    step      100   200   300   400   500        keep 2, metric = validation loss
    metric    2.1   1.7   1.9   2.0   2.2
                    best        ─ newest ─       100 and 300 go

A checkpoint is good if its files verify now, so one that the disk has damaged never replaces a good one. A folder is
deleted only if its manifest shows that weitune wrote it, and nobody has added files to it.

Cost: every checkpoint that stays is read and hashed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from weitune.files.publish import discard
from weitune.run.checkpoint import Checkpoint, fault_of, list_checkpoints, read_manifest
from weitune.run.history import best_of
from weitune.run.names import MANIFEST


def rotate(run: Path, keep: int) -> list[tuple[Checkpoint, str]]:
    """Delete all but the ``keep`` newest good checkpoints of ``run`` and the best one.

    Returns the faulty ones among the newest, which stay, with their faults. Raises OSError if deleting fails.
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
    best = best_checkpoint([*older, *newest])
    for checkpoint in older:
        if checkpoint != best and _is_ours(checkpoint):
            discard(checkpoint.folder)
    return faulty


def best_checkpoint(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """Return the best (:mod:`weitune.run.history`) of the good ones among ``checkpoints``; None if none is known."""
    left = {checkpoint.step: checkpoint for checkpoint in checkpoints}
    while best := best_of((step, checkpoint.metric) for step, checkpoint in left.items()):
        checkpoint = left.pop(best[0])
        if not fault_of(checkpoint):
            return checkpoint
    return None


def _is_ours(checkpoint: Checkpoint) -> bool:
    try:
        ours = {MANIFEST, *read_manifest(checkpoint)}
        return {entry.name for entry in checkpoint.folder.iterdir()} <= ours
    except (OSError, ValueError):
        return False
