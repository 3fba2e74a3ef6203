"""Check data before training: counts of rows, lengths, steps an epoch, and what sharing prefixes saves.

Without a model, rows are only read, and lengths are in characters. With one, everything is prepared as for training,
into a temporary folder. Cost: that of a preparation, and packing a sample of the steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.framing import Framing
from weitune.data.pack import pack
from weitune.data.preference.values import examples_in
from weitune.data.prepare.accounts import RowCounts
from weitune.data.prepare.group_store import StoredGroups
from weitune.data.prepare.groups import answers_of, count_untokenized
from weitune.data.prepare.prepare import prepare_valid_groups, prepare_valid_rows
from weitune.data.prepare.recipe_reader import recipe_reader
from weitune.data.prepare.report import DataReport, Unit
from weitune.data.prepare.store import StoredExamples
from weitune.data.problems import Problems
from weitune.data.read.conversations import Reader
from weitune.data.schedule import Plan
from weitune.errors import InputError
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


def check(
    recipe: Recipe, framing: Framing | None, progress: Progress | None = None, reader: Reader | None = None
) -> Check:
    """Read the recipe's data, prepare them if there is a ``framing``, and judge them. Never raises DataError.

    ``reader`` reads them, if it is not to be that of a training.
    """
    reader = reader or recipe_reader(recipe)
    if framing is None:
        return _without_model(reader, recipe, progress)
    with _scratch() as folder:
        prepared: tuple[DataReport, StoredExamples | StoredGroups]
        if recipe.preference is None:
            prepared = prepare_valid_rows(reader, recipe, framing, Path(folder), progress)
        else:
            prepared = prepare_valid_groups(reader, recipe, framing, Path(folder), progress)
        report, items = prepared
        lengths = items.answers.lengths if isinstance(items, StoredGroups) else items.lengths
        plan = Plan(len(items), recipe.train.batch_size, 1, recipe.train.seed)
        return Check(report, reader.problems, lengths.copy(), plan.steps_per_epoch, saved_by_sharing(items, plan))


@contextmanager
def _scratch() -> Iterator[str]:
    """Yield a temporary folder. Raises InputError if the system refuses to write there."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    except OSError as error:
        raise InputError("data.cache.cannot_write", folder=tempfile.gettempdir(), strerror=error) from error


def saved_by_sharing(items: StoredExamples | StoredGroups, plan: Plan) -> float | None:
    """Return the share of tokens that the prefix tree saves in evenly spaced steps of the first epoch."""
    if not plan.steps_per_epoch:
        return None
    steps = np.unique(np.linspace(0, plan.steps_per_epoch - 1, _SAMPLED_STEPS).astype(int))
    apart = together = 0
    for step in steps:
        batch = examples_in(items[int(i)] for i in plan.step(int(step)))
        apart += sum(len(example.input_ids) for example in batch)
        together += len(pack(batch))
    return 1 - together / apart


def _without_model(reader: Reader, recipe: Recipe, progress: Progress | None) -> Check:
    accounts = RowCounts()
    divided = recipe.preference is not None and not recipe.preference.needs_pairs
    lengths, learned = [], []
    for _, row in reader.valid_rows():
        if isinstance(row, Conversation):
            accounts.row(row, 1, [])
            lengths.append(_characters(row.turns))
            learned.append(_characters(turn for turn in row.turns if turn.role == "assistant"))
        elif count_untokenized(row, accounts, divided=divided):
            for answer in answers_of(row):
                lengths.append(_characters((*row.prompt.turns, *answer)))
                learned.append(_characters(turn for turn in answer if turn.role == "assistant"))
        if progress is not None and not reader.rows % 1000:
            progress(reader.rows, None)
    accounts.blank(reader.blank_rows, reader.blank_places)
    characters, supervised = np.array(lengths, np.int32), np.array(learned, np.int32)
    report = accounts.report(reader, characters, supervised, unit="characters")
    return Check(report, reader.problems, characters)


def _characters(turns: Iterable[Turn]) -> int:
    return sum(len(turn.content) for turn in turns)
