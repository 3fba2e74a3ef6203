"""Adapters that were made elsewhere: a folder as PEFT, LLaMA-Factory, Unsloth or ms-swift write it, used like a run.

    FOLDER/
      adapter_config.json        names the base model, by a hub id or by a path of the machine that trained
      adapter_model.safetensors
      tokenizer.json …           if present, used instead of the base's, and so is its chat template
      chat_template.jinja        if there is no tokenizer: the base's tokenizer with this template
      checkpoint-100/ …          adapters too
      args.json                  ms-swift's settings: the model's id and the system prompt are suggested from it
      recipe.yaml, state.json    of weitune: a pushed adapter, or a checkpoint copied out of its run

Nothing is written into such a folder.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weitune.errors import ModelError, RecipeError, RunError, first_line
from weitune.files.json_files import json_object
from weitune.files.paths import user_path
from weitune.generate.run import Run
from weitune.messages import say
from weitune.model.file_names import MODEL_FILES, holds_model
from weitune.model.load.locate import is_hub_id
from weitune.model.lora.adapter_config import CONFIG, check_adapter, check_files, read_adapter_config
from weitune.progress import Note
from weitune.recipe.load import build_recipe, recorded
from weitune.recipe.schema import Recipe
from weitune.run.base_check import checked_base, fingerprints_in
from weitune.run.create import load_recorded
from weitune.run.names import RECIPE, STATE, checkpoint_folders, checkpoint_name, checkpoint_step, is_part_of_run
from weitune.run.run_folder import Which

if TYPE_CHECKING:
    from weitune.model.load.locate import ModelFiles


def open_run(
    path: str | Path,
    *,
    model: str | None = None,
    system: str | None = None,
    accept_changed_base: bool = False,
    say: Note | None = None,
) -> Run:
    """Open a run, or a plain adapter as if it were one.

    ``model`` and ``system`` are the base and the system prompt of a plain adapter. Raises RunError if ``path`` is
    neither, or if they are given for a run, which has its own.
    """
    folder = Path(path)
    if not is_plain_adapter(folder):
        for option, value in (("--model", model), ("--system", system)):
            if value is not None and (folder / RECIPE).is_file():
                raise RunError("generate.plain_adapter.has_its_own", folder=folder, option=option)
        return Run(folder, accept_changed_base=accept_changed_base, say=say)
    return PlainAdapter(folder, model=model, system=system, accept_changed_base=accept_changed_base, say=say)


def is_plain_adapter(folder: Path) -> bool:
    """Return whether ``folder`` has an adapter and is no run of weitune nor a part of one."""
    run = (folder / RECIPE).is_file() and not (folder / CONFIG).is_file()
    return not is_part_of_run(folder) and not run and ((folder / CONFIG).is_file() or bool(_checkpoints(folder)))


class PlainAdapter(Run):
    """An adapter of another program, with the interface of a run."""

    made_elsewhere = True

    def __init__(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        system: str | None = None,
        accept_changed_base: bool = False,
        say: Note | None = None,
    ) -> None:
        """Open the folder ``path``; ``model`` is the base if not the one that the adapter names.

        Raises RunError if there is no LoRA adapter in safetensors.
        """
        self._model, self._system = model, system
        super().__init__(path, accept_changed_base=accept_changed_base, say=say)

    def _check_folder(self) -> None:
        if holds_model(self.adapter):
            raise RunError(
                "generate.plain_adapter.adapter_and_model", folder=self.adapter, config=CONFIG, weights=MODEL_FILES[1]
            )
        check_files(self.adapter)

    @cached_property
    def adapter(self) -> Path:
        """The folder of the adapter: this one, or its newest checkpoint."""
        if (self.path / CONFIG).is_file():
            return self.path
        return self.path / checkpoint_name(_checkpoints(self.path)[-1])

    @cached_property
    def recipe(self) -> Recipe:
        """What is known about the training of the adapter. Raises RunError if its base is unknown or not here."""
        known = self._recipe_of_weitune
        base, revision = self._base_name(known)
        changes: dict[str, Any] = {"model": base, "revision": revision, "validation": None, "output": None}
        if known is None:
            known = Recipe(model=base, data=[str(self.path)])
        if self._system is not None:
            changes["system"] = self._system or None
        elif known.system is None and (system := self._arguments().get("system")):
            self._say(say("generate.plain_adapter.system_in_args", path=self.path, system=shlex.quote(system)))
        return known.model_copy(update=changes)

    def base_files(self) -> ModelFiles:
        if self._base is None:
            check_adapter(self.adapter)
            recorded = fingerprints_in(json_object(self.adapter / STATE).get("basis"))
            try:
                files = checked_base(self.path, self.recipe, recorded, accept=self.accept_changed_base, note=self._say)
            except ModelError as error:
                if self._model:
                    raise
                fix = f"{error.fix}\n{self._how_to_give_base()}"
                raise ModelError("generate.plain_adapter.no_base", message=error.message, fix=fix) from None
            of_weitune = self._recipe_of_weitune is not None  # frames with the base's tokenizer and the recipe
            self._base = files if of_weitune else replace(files, adapter=self.adapter)
        return self._base

    def checkpoints(self) -> list[int]:
        return _checkpoints(self.path)

    def adapter_folder(self, which: Which = "last") -> Path | None:
        """Return the folder of an adapter; None for ``base``. Raises RunError if there is no such checkpoint."""
        if which == "base":
            return None
        if which == "last":
            return self.adapter
        steps = self.checkpoints()
        if which in steps:
            return self.path / checkpoint_name(which)
        if not steps:
            raise RunError("generate.plain_adapter.no_checkpoints", path=self.path, which=which)
        raise RunError(
            "generate.plain_adapter.no_such_checkpoint", path=self.path, which=which, steps=", ".join(map(str, steps))
        )

    def _base_name(self, known: Recipe | None) -> tuple[str, str | None]:
        if self._model is not None:
            return self._model, None
        config = read_adapter_config(self.adapter)
        name = known.model if known else config.get("base_model_name_or_path")
        revision = known.revision if known else config.get("revision")
        if not isinstance(name, str) or not name:
            raise RunError(
                "generate.plain_adapter.names_no_base", config=CONFIG, folder=self.adapter, fix=self._how_to_give_base()
            )
        if name.startswith("builtin:") or user_path(name).exists():
            return name, None
        if not is_hub_id(name):
            raise RunError(
                "generate.plain_adapter.base_not_here", path=self.path, name=name, fix=self._how_to_give_base()
            )
        return name, revision if isinstance(revision, str) else None

    def _how_to_give_base(self) -> str:
        arguments = self._arguments()
        suggested = next((arguments[key] for key in ("model", "model_id_or_path") if arguments.get(key)), None)
        if suggested and is_hub_id(suggested):
            return say("generate.plain_adapter.give_base_of_args", base=suggested, argument=shlex.quote(suggested))
        return say("generate.plain_adapter.give_base")

    @cached_property
    def _recipe_of_weitune(self) -> Recipe | None:
        try:
            if (self.path / RECIPE).is_file():
                return load_recorded(self.path)
            tree = json_object(self.adapter / STATE).get("recipe")
            return build_recipe(recorded(tree)) if isinstance(tree, dict) else None
        except RecipeError as error:
            self._say(say("generate.plain_adapter.recipe_unreadable", path=self.path, error=first_line(error)))
            return None

    def _arguments(self) -> dict[str, str]:
        above = [self.adapter.parent] if checkpoint_step(self.adapter.name) is not None else []
        for folder in [self.adapter, *above]:
            if settings := json_object(folder / "args.json"):
                return {key: value for key, value in settings.items() if isinstance(value, str)}
        return {}


def _checkpoints(folder: Path) -> list[int]:
    return [step for step, checkpoint in checkpoint_folders(folder) if (checkpoint / CONFIG).is_file()]
