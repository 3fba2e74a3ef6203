"""Read a run's folder: its recipe, base, checkpoints and events (:mod:`.names` has the files)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weitune.errors import RunError
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, ADAPTER_FOLDER, holds_adapter, holds_model
from weitune.progress import Note
from weitune.run.checkpoint import list_checkpoints
from weitune.run.events import Event, read_events, typed_event
from weitune.run.history import best_of
from weitune.run.manifest import damage_of
from weitune.run.names import RECIPE, checkpoint_name, checkpoint_step, is_part_of_run
from weitune.shell import shell_command

if TYPE_CHECKING:
    from weitune.model.load.locate import ModelFiles
    from weitune.recipe.schema import Recipe


def given_name(folder: Path) -> str:
    """Return the last part of ``folder``; of a symbolic link its own name, not that of the folder it leads to."""
    if ".." in folder.parts:  # what this stands for depends on where links lead
        folder = folder.resolve()
    return Path(os.path.abspath(folder)).name  # noqa: PTH100  (Path.resolve would follow links)


Which: TypeAlias = "Literal['last', 'best', 'base'] | int"
"""An adapter of a run: the last one, the best one (:mod:`.history`), none, or that of a checkpoint's step."""


class RunFolder:
    """The folder of a run, finished or not; read only."""

    made_elsewhere = False
    """Whether this is a plain adapter of another program (:mod:`weitune.generate.plain_adapter`)."""

    def __init__(self, path: str | Path, *, accept_changed_base: bool = False, say: Note | None = None) -> None:
        """Open the folder ``path``. Raises RunError if it is not a run's.

        With ``accept_changed_base``, a base model is used even if the run was trained on another. ``say`` gets lines
        for the user; without it they are logged.
        """
        self.path = Path(path)
        self.accept_changed_base = accept_changed_base
        self._say = say or logging.getLogger("weitune").warning
        self._base: ModelFiles | None = None
        self._damages: dict[int, str] = {}
        self._check_folder()

    def _check_folder(self) -> None:
        if not (self.path / RECIPE).is_file():
            raise _not_a_run(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def name(self) -> str:
        return given_name(self.path)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run. Raises RecipeError if the file is no longer valid."""
        from weitune.run.base_check import with_reachable_model
        from weitune.run.create import load_recorded

        return with_reachable_model(self.path, load_recorded(self.path))

    def base_files(self) -> ModelFiles:
        """Return the files of the base model, which the first call locates, downloads if needed, and verifies.

        Raises ModelError if they cannot be located, RunError if they are not those that the run was trained on.
        """
        if self._base is None:
            from weitune.run.base_check import checked_base, recorded_basis

            self._base = checked_base(
                self.path, self.recipe, recorded_basis(self.path), accept=self.accept_changed_base, note=self._say
            )
        return self._base

    def checkpoints(self) -> list[int]:
        return [checkpoint.step for checkpoint in list_checkpoints(self.path) if _is_complete(checkpoint.folder)]

    def adapter_folder(self, which: Which = "last") -> Path | None:
        """Return the PEFT folder of an adapter (of a whole model that was trained, its folder); None for ``base``.

        ``last`` is the final adapter, or the newest checkpoint while there is none. Raises RunError if the run has no
        adapter yet or no such checkpoint, if its files are damaged, or if ``best`` is asked for and none was validated.
        """
        if which == "base":
            return None
        if which == "best":
            return self._best()
        steps, final = self.checkpoints(), self.path / ADAPTER_FOLDER
        if which == "last":
            if _is_complete(final):
                return final
            if not steps:
                command = shell_command("train", "--resume", self.path)
                raise RunError("run.run_folder.no_adapter_yet", run=self.path, command=command)
            which = steps[-1]
        if which not in steps:
            if not steps:
                raise RunError("run.run_folder.no_checkpoints", run=self.path, which=which)
            raise RunError(
                "run.run_folder.no_such_checkpoint", run=self.path, which=which, steps=", ".join(map(str, steps))
            )
        folder = self.path / checkpoint_name(which)
        if damage := self._damage(which):
            raise RunError("run.run_folder.checkpoint_damaged", folder=folder, damage=damage)
        return folder

    def adapter_step(self, which: Which) -> int | None:
        """Return the step at which an adapter was saved; None for ``base``, or if no record tells it."""
        folder = self.adapter_folder(which)
        return None if folder is None else self.step_of(folder)

    def newest_step(self) -> int | None:
        """Return the step of the adapter that ``last`` stands for, damaged or not; None if none is known."""
        final = self.path / ADAPTER_FOLDER
        return self.step_of(final) if _is_complete(final) else max(self.checkpoints(), default=None)

    def step_of(self, adapter: Path) -> int | None:
        """Return the step at which the adapter in a folder of this run was saved; None if no record tells it."""
        if (step := checkpoint_step(adapter.name)) is not None:
            return step
        ends = [
            event for event in self.typed_events() if event.kind == "end"
        ]  # the final adapter's step is in the last
        return ends[-1].adapter_step if ends else None

    def _damage(self, step: int) -> str:
        if step not in self._damages:
            self._damages[step] = damage_of(self.path / checkpoint_name(step))
        return self._damages[step]

    def _best(self) -> Path:
        """Return the folder of the best checkpoint (:mod:`.history`) that is not damaged."""
        metrics = {each.step: each.metric for each in list_checkpoints(self.path) if _is_complete(each.folder)}
        damaged: list[str] = []
        while best := best_of(metrics.items()):
            name, checked = checkpoint_name(best[0]), best[0] in self._damages
            if not (damage := self._damage(best[0])):
                if damaged and not checked:
                    self._say(say("run.run_folder.best_intact_used", name=name, damaged="; ".join(damaged)))
                return self.path / name
            damaged.append(say("run.run_folder.damaged", name=name, damage=damage))
            del metrics[best[0]]
        if damaged:
            raise RunError("run.run_folder.no_measured_one_intact", run=self.path, damaged="\n  ".join(damaged))
        raise RunError("run.run_folder.none_measured", run=self.path)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the run's events in order, without lines that a crash or a full disk tore."""
        return read_events(self.path)

    def typed_events(self) -> Iterator[Event]:
        """Yield :meth:`events` as what they are events of."""
        return map(typed_event, self.events())


def _is_complete(folder: Path) -> bool:
    return holds_adapter(folder) or holds_model(folder)


def _not_a_run(path: Path) -> RunError:
    if not path.exists():
        return RunError("run.run_folder.no_folder", path=path)
    if not path.is_dir():
        return RunError("run.run_folder.is_a_file", path=path)
    part_of_a_run = is_part_of_run(path)
    if (path / ADAPTER_FILES[0]).is_file() and not part_of_a_run:
        return RunError("run.run_folder.made_elsewhere", path=path)
    if part_of_a_run:
        step = checkpoint_step(path.name)
        if step is not None:
            return RunError("run.run_folder.is_a_checkpoint", path=path, run=path.parent, step=step)
        return RunError("run.run_folder.part_of_a_run", path=path, run=path.parent)
    return RunError("run.run_folder.not_a_run", path=path)
