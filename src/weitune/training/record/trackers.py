"""Experiment trackers, through accelerate: the figures of each step and evaluation are logged there too.

Each is a separate package, installed by the extra of the same name. A tracker shows the run under its folder's name.
The events in the run's folder remain the authoritative record, so a failing tracker does not end the run: it is
reported once, and the run goes on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from weitune.errors import MissingExtraError
from weitune.files.json_files import json_text
from weitune.messages import say
from weitune.progress import Progress
from weitune.recipe.load import values
from weitune.training.loop import StepRecord
from weitune.training.reporter import Reporter

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    from weitune.model.load.locate import ModelFiles
    from weitune.model.load.tokenizer import TokenizerFraming
    from weitune.recipe.schema import Recipe
    from weitune.training.validation_history import Evaluation

FOLDER = "logs"
PROJECT = "weitune"
_STEP = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes")


def check_trackers(recipe: Recipe) -> None:
    """Raise MissingExtraError if the package of a tracker that ``recipe`` asks for is not installed."""
    for name in recipe.log.trackers:
        if not installed(name):
            raise MissingExtraError(name, name)


def installed(name: str) -> bool:
    """Return whether the package ``name`` is there, without importing it."""
    return importlib.util.find_spec(name) is not None


def _options(name: str, folder: Path) -> dict[str, str]:
    """Return what the tracker ``name`` is started with: its files below ``folder`` where it takes a place for them."""
    logs = str(folder / FOLDER)
    match name:
        case "tensorboard":
            return {"logging_dir": logs}
        case "wandb":
            (folder / FOLDER).mkdir(exist_ok=True)  # it would write elsewhere
            return {"dir": logs, "name": folder.name}
        case "swanlab":
            return {"logdir": logs, "experiment_name": folder.name}
        case "mlflow":
            return {"run_name": folder.name}
        case _:
            return {"name": folder.name}


class TrackedReporter(Reporter):
    """Passes everything on to another reporter, and figures to trackers as well; on the main process only."""

    def __init__(self, inner: Reporter, accelerator: Accelerator, recipe: Recipe, folder: Path) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._inner = inner
        self._trackers: dict[str, GeneralTracker] = {}
        config = {
            key: value if isinstance(value, int | float | str) else json_text(value)
            for key, value in values(recipe).items()
        }
        for name in recipe.log.trackers if accelerator.is_main_process else []:
            with self._given_up_if_it_fails(name):
                self._trackers[name] = tracker = LOGGER_TYPE_TO_CLASS[name](PROJECT, **_options(name, folder))
                tracker.start()
                tracker.store_init_configuration(config)

    def say(self, line: str) -> None:
        self._inner.say(line)

    def opened(self, recipe: Recipe, files: ModelFiles, framed: TokenizerFraming) -> None:
        self._inner.opened(recipe, files, framed)

    def started(self, folder: Path, done: int, steps: int, log_every: int) -> None:
        self._inner.started(folder, done, steps, log_every)

    def stepped(self, record: StepRecord) -> None:
        figures = {**{name: getattr(record, name) for name in _STEP}, **record.figures}
        self._log({f"train/{name}": float(value) for name, value in figures.items()}, record.step)
        self._inner.stepped(record)

    def evaluating(self) -> Progress | None:
        return self._inner.evaluating()

    def evaluated(self, evaluation: Evaluation) -> None:
        if evaluation.measured:
            figures = {"loss": evaluation.loss, "perplexity": evaluation.perplexity, **evaluation.figures}
            self._log({f"validation/{name}": value for name, value in figures.items()}, evaluation.step)
        self._inner.evaluated(evaluation)

    def saved(self, folder: Path) -> None:
        self._inner.saved(folder)

    def ended(self) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._given_up_if_it_fails(name):
                tracker.finish()
        self._trackers = {}
        self._inner.ended()

    def _log(self, figures: dict[str, float], step: int) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._given_up_if_it_fails(name):
                tracker.log(figures, step=step)

    @contextmanager
    def _given_up_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  (whatever a tracker raises)
            self._trackers.pop(name, None)
            why = (str(error).splitlines() or [type(error).__name__])[0]
            self._inner.say(say("training.trackers.failed", name=name, why=why))
