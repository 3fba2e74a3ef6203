"""The files of a run's folder, read for a report. What is missing or broken is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from weitune.evaluate.evaluation import Evaluation, read_evaluation
from weitune.files.json_files import json_object
from weitune.recipe.load import dump_recipe, values
from weitune.recipe.schema import Recipe
from weitune.run.data_record import DataRecord, read_data_record
from weitune.run.events import Event, Step, Validation
from weitune.run.history import best_of, finite
from weitune.run.names import ANSWERS, ENVIRONMENT
from weitune.run.run_folder import RunFolder

E = TypeVar("E", bound=Event)
_TURNS = frozenset({"start", "resume", "end", "stop", "not finite"})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run, as read from its files."""

    path: Path
    recipe: Recipe
    environment: Mapping[str, Any]
    data: DataRecord | None
    events: tuple[Event, ...]
    evaluation: Evaluation | None
    answers: tuple[Mapping[str, Any], ...] = ()
    """Questions with the answers before and after, if the demo asked any of the newest adapter."""
    adapter_step: int | None = None
    """The step of the newest adapter, if that is known."""

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read the run in ``folder``. Raises RunError if there is none, RecipeError if its recipe is broken."""
        run, (answers, step) = RunFolder(folder), _answers(folder / ANSWERS)
        record = cls(
            path=run.path,
            recipe=run.recipe,
            environment=json_object(folder / ENVIRONMENT),
            data=read_data_record(folder),
            events=tuple(run.typed_events()),
            evaluation=read_evaluation(folder),
            answers=answers,
            adapter_step=run.newest_step(),
        )
        return record if step in {None, record.adapter_step} else replace(record, answers=())

    @property
    def name(self) -> str:
        return self.path.absolute().name

    @property
    def recipe_text(self) -> str:
        return dump_recipe(self.recipe)

    def of_kind(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def turns(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    @property
    def last_turn(self) -> Event | None:
        """The last event that began or ended the run, or made it go on; None if it never began."""
        return next((event for event in reversed(self.events) if event.kind in _TURNS), None)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end and has not gone on since."""
        return self.last_turn is not None and self.last_turn.kind == "end"

    @property
    def stopped_by(self) -> str:
        """What stopped the run, if it has not gone on since; empty if nothing did."""
        last = self.last_turn
        return str(last.reason) if last is not None and last.kind == "stop" else ""

    @property
    def not_finite(self) -> bool:
        """Whether the run ended because a loss or a gradient was not finite, and has not gone on since."""
        return self.last_turn is not None and self.last_turn.kind == "not finite"

    @property
    def evaluated_earlier(self) -> tuple[int, int] | None:
        """The step of the adapter that was evaluated as the last one, and that of the newest, if they differ."""
        tuned = None if self.evaluation is None else self.evaluation.judged
        if tuned is None or tuned[1].which != "last" or tuned[1].step is None or self.adapter_step is None:
            return None
        steps = tuned[1].step, self.adapter_step
        return None if steps[0] == steps[1] else steps

    @property
    def planned(self) -> int | None:
        """How many steps the run has: a run that goes on may have got more."""
        begun = (event.steps for event in reversed(self.events) if event.kind in {"start", "resume"})
        return next((steps for steps in begun if steps is not None), None)

    def series(self, name: str, kind: type[Event] = Step) -> list[tuple[float, float]]:
        """Return (step, value) of a number in the events of a kind; what is not a finite number is left out."""
        pairs = ((finite(event.step), finite(getattr(event, name))) for event in self.of_kind(kind))
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    def figures(self, name: str, kind: type[Step] | type[Validation] = Step) -> list[tuple[float, float]]:
        """Return (step, value) of a figure of preferences in the events of a kind."""
        return [(float(event.step or 0), event.figures[name]) for event in self.of_kind(kind) if name in event.figures]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and validation loss of the best checkpoint; before the first step there is none."""
        return best_of((int(step), loss) for step, loss in self.series("loss", Validation) if step > 0)

    def values(self) -> dict[str, Any]:
        """Return every key of the recipe by its dotted name."""
        return values(self.recipe)


def _answers(path: Path) -> tuple[tuple[Mapping[str, Any], ...], object]:
    """Return the demo's answers and the step of the adapter that gave them."""
    tree = json_object(path)
    answers = tree.get("answers")
    found = answers if isinstance(answers, list) else []
    return tuple(answer for answer in found if isinstance(answer, dict)), tree.get("step")
