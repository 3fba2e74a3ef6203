"""State of a stopped run, read before resuming changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitune.data.schedule import Plan
from weitune.errors import RunError
from weitune.messages import say
from weitune.model.lora.adapter_config import read_adapter_config
from weitune.recipe.load import build_recipe, recorded
from weitune.recipe.schema import AUTO, PROJECTIONS, Recipe
from weitune.run.checkpoint import Checkpoint, newest_good, set_aside
from weitune.run.create import load_recorded, read_environment
from weitune.run.names import ENVIRONMENT
from weitune.training.resume.resume_checks import Basis
from weitune.training.validation_history import ValidationHistory

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


def precision_in(environment: Mapping[str, Any]) -> str:
    """Return the value of ``train.precision`` that ``environment`` records; ``auto`` if it records none."""
    return _PRECISIONS.get(environment.get("precision", ""), "auto")


@dataclass(frozen=True, slots=True)
class ResumeState:
    """A run up to its newest good checkpoint, or its start if it has none."""

    checkpoint: Checkpoint | None
    faulty: list[tuple[Checkpoint, str]]
    """Newer checkpoints that do not verify, each with its fault."""
    environment: Mapping[str, Any]
    state: Mapping[str, Any]
    recipe: Recipe

    @classmethod
    def read(cls, folder: Path) -> ResumeState:
        """Read the run in ``folder``. Raises RunError or RecipeError if a file that it needs is broken."""
        environment = read_environment(folder)
        checkpoint, faulty = newest_good(folder)
        state = checkpoint.state if checkpoint else {}
        recipe = build_recipe(recorded(state["recipe"])) if state.get("recipe") else load_recorded(folder)
        if "basis" not in environment:
            raise RunError("training.resume_state.no_basis", folder=folder / ENVIRONMENT)
        if "data" not in (state.get("basis") or environment["basis"]):
            raise RunError("training.resume_state.merged", folder=folder)
        return cls(checkpoint, faulty, environment, state, recipe)

    @property
    def step(self) -> int:
        """Steps that are done and need not be done again."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def basis(self) -> Basis:
        basis: Basis = self.state.get("basis") or self.environment["basis"]
        return basis

    @property
    def precision(self) -> str:
        """The resolved ``train.precision``; the run keeps it on whatever machine it is resumed."""
        return precision_in(self.environment)

    @property
    def micro_tokens(self) -> int | None:
        """The resolved ``train.micro_tokens``; the same split of a step gives the same bits."""
        return self.state.get("micro_tokens") or self.environment.get("micro_tokens")

    @property
    def packed(self) -> bool:
        """Whether it computed with packed copies of matrices, which may round otherwise than without."""
        packed = self.state.get("packed", self.environment.get("packed"))
        return packed is True

    @property
    def targets(self) -> Mapping[str, Any] | None:
        """What the run adapts, as it has recorded it; None if its recipe alone says that."""
        recorded: Mapping[str, Any] | None = self.state.get("targets") or self.environment.get("targets")
        lora = self.recipe.adapter
        if recorded is None and self.checkpoint and lora and lora.target_modules == ["all-linear"]:
            return read_adapter_config(self.checkpoint.folder)  # 0.1.0, where it meant other layers
        return recorded

    def keeping_choices(self, recipe: Recipe) -> Recipe:
        """Return ``recipe`` with what the run chose where both leave that to ``auto``."""
        train = recipe.train
        if train.learning_rate == "auto" and self.environment.get("learning_rate") == "auto":
            train = train.model_copy(update={"learning_rate": self.recipe.train.learning_rate})
        return self._keeping_targets(recipe.model_copy(update={"train": train}))

    def _keeping_targets(self, recipe: Recipe) -> Recipe:
        """Return ``recipe`` with the run's ``lora.target_modules`` where these are 0.1.0's default and that is today's.

        A recipe without this key still describes the same run.
        """
        before, now = self.recipe.adapter, recipe.adapter
        if before is None or now is None or now.target_modules != AUTO[0] or before.target_modules != [*PROJECTIONS]:
            return recipe
        return recipe.model_copy(update={"lora": now.model_copy(update={"target_modules": before.target_modules})})

    @property
    def history(self) -> ValidationHistory:
        return ValidationHistory.from_state(self.state)

    def is_complete(self, recipe: Recipe) -> bool:
        history = self.history
        judged = recipe.validation is None or history.has(self.step)  # a stop may have come before the last evaluation
        return (judged and self.step == self.steps(recipe)) or history.patience_exhausted(recipe.train.patience)

    def steps(self, recipe: Recipe) -> int:
        """Return how many steps the whole run has by ``recipe``."""
        train = recipe.train
        examples = int(self.basis["data"]["examples"])
        return Plan(examples, train.batch_size, train.epochs, train.seed, train.max_steps).steps

    def set_aside_faulty(self) -> list[str]:
        """Give faulty checkpoints another name, and return a line for each."""
        return [
            say(
                "training.resume_state.passed_over",
                name=checkpoint.folder.name,
                fault=fault,
                new_name=set_aside(checkpoint).name,
            )
            for checkpoint, fault in self.faulty
        ]
