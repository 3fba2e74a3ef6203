"""Check data before training: counts of rows, lengths, steps an epoch, and what sharing prefixes saves.

Without a model, rows are only read, and lengths are in characters. With one, everything is prepared as for training,
into a temporary folder. Cost: that of a preparation, and packing a sample of the steps.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weitune.data.frame.framing import Framing
from weitune.data.pack import pack
from weitune.data.prepare.accounts import RowCounts
from weitune.data.prepare.prepare import prepare_valid_rows
from weitune.data.prepare.recipe_reader import recipe_reader
from weitune.data.prepare.report import DataReport, Unit
from weitune.data.prepare.store import StoredExamples
from weitune.data.problems import Problems
from weitune.data.read.conversations import Reader
from weitune.data.schedule import Plan
from weitune.progress import Progress
from weitune.recipe.schema import Recipe

_SAMPLED_STEPS = 100


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict on data; ``lengths`` are in tokens of the kept examples, or in characters of the rows."""

    report: DataReport
    problems: Problems
    lengths: npt.NDArray[np.int32]
    steps_per_epoch: int | None = None
    saved_by_sharing: float | None = None
    """Share of the tokens that need no computation, since a step computes a common prefix once."""

    @property
    def unit(self) -> Unit:
        return self.report.unit

    @property
    def ready(self) -> bool:
        """Whether training can begin."""
        return not self.problems and self.report.rows.trained > 0

    def to_json(self) -> dict[str, Any]:
        facts = {"unit": self.unit, "steps_per_epoch": self.steps_per_epoch, "saved_by_sharing": self.saved_by_sharing}
        return {"ready": self.ready, **self.report.to_json(), **facts, "problems": self.problems.to_json()}


def check(recipe: Recipe, framing: Framing | None, progress: Progress | None = None) -> Check:
    """Read the recipe's data, prepare them if there is a ``framing``, and judge them. Never raises DataError."""
    reader = recipe_reader(recipe)
    if framing is None:
        return _without_model(reader, progress)
    with tempfile.TemporaryDirectory() as folder:
        report, examples = prepare_valid_rows(reader, recipe, framing, Path(folder), progress)
        plan = Plan(len(examples), recipe.train.batch_size, 1, recipe.train.seed)
        saved = saved_by_sharing(examples, plan)
        return Check(report, reader.problems, examples.lengths.copy(), plan.steps_per_epoch, saved)


def saved_by_sharing(examples: StoredExamples, plan: Plan) -> float | None:
    """Return the share of tokens that the prefix tree saves in evenly spaced steps of the first epoch."""
    if not plan.steps_per_epoch:
        return None
    steps = np.unique(np.linspace(0, plan.steps_per_epoch - 1, _SAMPLED_STEPS).astype(int))
    apart = together = 0
    for step in steps:
        batch = [examples[int(i)] for i in plan.step(int(step))]
        apart += sum(len(example.input_ids) for example in batch)
        together += len(pack(batch))
    return 1 - together / apart


def _without_model(reader: Reader, progress: Progress | None) -> Check:
    accounts = RowCounts()
    lengths, learned = [], []
    for _, conversation in reader.conversations():
        accounts.row(conversation, 1, [])
        lengths.append(sum(len(turn.content) for turn in conversation.turns))
        learned.append(sum(len(turn.content) for turn in conversation.turns if turn.role == "assistant"))
        if progress is not None and not len(lengths) % 1000:
            progress(reader.rows, None)
    accounts.blank(reader.blank_rows, reader.blank_places)
    characters, supervised = np.array(lengths, np.int32), np.array(learned, np.int32)
    report = accounts.report(reader, characters, supervised, unit="characters")
    return Check(report, reader.problems, characters)
