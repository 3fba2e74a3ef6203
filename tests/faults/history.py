"""One random history of a run's folder: save, rotate, rot, crash; checked after every event against a small model.

Expected: of what was good before, and was not damaged by the event itself, the newest and the best are still there.
"""

from __future__ import annotations

import errno
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.damage import cut, flip, lose
from tests.faults.layer import Killed, Layer, faults
from tests.faults.small import FILES, is_intact, save
from weitune.files.publish import tidy
from weitune.run.checkpoint import list_checkpoints, newest_good, set_aside
from weitune.run.names import MANIFEST
from weitune.run.rotation import rotate

NOTE = "my notes.txt"


@dataclass
class History:
    """A run as its user sees it."""

    run: Path
    draw: random.Random
    step: int = 0
    keep: int = 1
    damaged: set[int] = field(default_factory=set)
    """Folders in which something has rotted."""
    notes: int = 0
    """Files that a user has put into checkpoints."""

    def good(self) -> dict[int, float]:
        """Return the metric of every checkpoint that is there and intact, judged without weitune."""
        there = [checkpoint for checkpoint in list_checkpoints(self.run) if checkpoint.step not in self.damaged]
        return {
            checkpoint.step: math.inf if checkpoint.metric is None else checkpoint.metric
            for checkpoint in there
            if is_intact(checkpoint)
        }

    def go_on(self) -> None:
        """Begin again after a crash, as a resumed run does."""
        found, passed_over = newest_good(self.run)
        tidy(self.run)
        for checkpoint, _ in passed_over:
            set_aside(checkpoint)
        self.step = found.step if found else 0

    def save_and_rotate(self) -> None:
        self.step += self.draw.randint(1, 3)
        self.store(self.draw.choice([None, round(self.draw.random(), 3)]))

    def store(self, metric: float | None) -> None:
        save(self.run, self.step, metric)
        self.damaged.discard(self.step)
        rotate(self.run, self.keep)

    def rot(self) -> None:
        """Damage one checkpoint, as a failing disk or a careless user does."""
        there = list_checkpoints(self.run)
        if there:
            victim = self.draw.choice(there)
            path = victim.folder / self.draw.choice([*FILES, MANIFEST])
            if path.is_file() and path.stat().st_size:
                self.draw.choice([cut, flip, lose])(path, self.draw)
                self.damaged.add(victim.step)

    def leave_a_note(self) -> None:
        there = list_checkpoints(self.run)
        if there and self.draw.random() < 0.3:
            note = self.draw.choice(there).folder / NOTE
            self.notes += not note.exists()
            note.write_text("the one I like")


def interrupted(history: History) -> None:
    """Save and rotate, but be killed, lose power, or meet a full disk somewhere on the way."""
    draw, kind = history.draw, history.draw.choice(["kill", "power cut", "full"])
    number = draw.randint(1, 60)

    def full(call: str, n: int) -> int | None:
        return errno.ENOSPC if kind == "full" and call in {"write", "open", "mkdir"} and n >= number else None

    layer = Layer(kill_at=None if kind == "full" else number, fails=full)
    history.step += draw.randint(1, 3)
    metric = draw.choice([None, round(draw.random(), 3)])
    try:
        with faults(layer):
            history.store(metric)
    except Killed:
        if kind == "power cut":
            layer.after_power_cut(history.run, draw)
        history.go_on()
    except OSError:
        history.store(metric)  # the run has waited, and tries again


def live(run: Path, seed: int) -> int:
    """Live the history of ``seed`` in the empty folder ``run``; returns how many events it had."""
    draw = random.Random(seed)
    history = History(run, draw, keep=draw.randint(1, 3))
    length = draw.randint(3, 12)
    for _ in range(length):
        before = history.good()
        events = [History.save_and_rotate, interrupted, History.rot, History.leave_a_note]
        event = draw.choices(events, [4, 4, 1, 1])[0]
        event(history)
        after = history.good()
        if event is History.rot:
            history.go_on()
            continue
        newest = max(before, default=None)
        assert newest is None or max(after, default=-1) >= newest, f"seed {seed}: the newest good one is lost"
        best = min(before.values(), default=None)
        assert best is None or min(after.values(), default=2) <= best, f"seed {seed}: the best is lost"
        assert len(list(run.rglob(NOTE))) == history.notes, f"seed {seed}: a user's file is lost"
    found, _ = newest_good(run)
    good = history.good()
    assert not good or (found is not None and found.step >= max(good)), f"seed {seed}: the newest good one is not found"
    return length
