"""A run's folder: the recipe it was made from, its adapters, its events, and engines that answer with them.

runs/zhenhuan/
  recipe.yaml            the resolved recipe: its presence makes the folder a run
  events.jsonl           one JSON object a line
  checkpoint-100/ …      a PEFT adapter with the training state
  adapter/               the final adapter
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weitune.errors import RunError
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, holds_adapter, holds_model
from weitune.run.history import best_of
from weitune.run.manifest import damage_of
from weitune.run.run_name import given_name
from weitune.shell import shell_command

if TYPE_CHECKING:
    from weitune.generate.dialogue import History
    from weitune.generate.engine import Engine
    from weitune.model.load.locate import ModelFiles
    from weitune.recipe.schema import Recipe
    from weitune.run.base_check import Say

Which: TypeAlias = "Literal['last', 'best', 'base'] | int"
"""An adapter of a run: the last one, the best one (:mod:`.history`), none, or that of a checkpoint's step."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_ENGINES_KEPT = 2


class Run:
    """A run on disk, finished or not.

    run = Run("runs/zhenhuan")
    run.chat("Who are you?")
    run.chat("And who am I?", history=[{"role": "user", "content": "Who are you?"}, …], temperature=0.7)
    """

    made_elsewhere = False
    """Whether this is a plain adapter of another program (:mod:`.plain_adapter`)."""

    def __init__(self, path: str | Path, *, accept_changed_base: bool = False, say: Say | None = None) -> None:
        """Open the folder ``path``. Raises RunError if it is not a run's.

        With ``accept_changed_base`` a base model that is not the one the run was trained on is used all the same.
        ``say`` gets lines for the user; without it they are logged.
        """
        self.path = Path(path)
        self.accept_changed_base = accept_changed_base
        self._say = say or logging.getLogger("weitune").warning
        self._engines: dict[tuple[Which, str | None], Engine] = {}
        self._base: ModelFiles | None = None
        self._damages: dict[int, str] = {}
        self._check_folder()

    def _check_folder(self) -> None:
        if not (self.path / "recipe.yaml").is_file():
            raise _not_a_run(self.path)

    def __repr__(self) -> str:
        """Return for example ``Run('runs/zhenhuan')``."""
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's name, as it was given."""
        return given_name(self.path)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe the run was made from. Raises RecipeError if someone broke it."""
        from weitune.recipe.load import load_recorded
        from weitune.run.base_check import found_from_here

        return found_from_here(self.path, load_recorded(self.path))

    def base_files(self) -> ModelFiles:
        """Return the files of the base model; all who open the run's model get them here.

        The first call finds them, downloads them if need be, and compares them with what the run recorded. Raises
        ModelError if they cannot be found, RunError if they are not those that the run was trained on.
        """
        if self._base is None:
            from weitune.run.base_check import checked_base, recorded_basis

            self._base = checked_base(
                self.path, self.recipe, recorded_basis(self.path), accept=self.accept_changed_base, note=self._say
            )
        return self._base

    def checkpoints(self) -> list[int]:
        """Return the steps of the checkpoints that are complete, in order."""
        found = ((_CHECKPOINT.fullmatch(entry.name), entry) for entry in self.path.iterdir())
        return sorted(int(name[1]) for name, entry in found if name and _is_adapter(entry))

    def adapter_folder(self, which: Which = "last") -> Path | None:
        """Return the PEFT folder of an adapter (of a whole model that was trained, its folder); None for ``base``.

        ``last`` is the final adapter, or the newest checkpoint while there is none. Raises RunError if the run has no
        adapter yet, no such checkpoint or one whose files are damaged, or for ``best`` none that was validated.
        """
        if which == "base":
            return None
        steps, final = self.checkpoints(), self.path / "adapter"
        if which == "last":
            if _is_adapter(final):
                return final
            if steps:
                return self._whole(steps[-1])
            raise RunError(
                "generate.run_folder.run_has_no_adapter",
                path=self.path,
                command=shell_command("train", "--resume", self.path),
            )
        if which == "best":
            return self._best(steps)
        if which not in steps:
            known = f"It has {', '.join(map(str, steps))}." if steps else "It has none."
            raise RunError("generate.run_folder.run_has_no_checkpoint", path=self.path, which=which, known=known)
        return self._whole(which)

    def _whole(self, step: int) -> Path:
        """Return the folder of a checkpoint. Raises RunError if its files are not those that were written."""
        folder = self.path / f"checkpoint-{step}"
        if damage := self._damage(step):
            raise RunError("generate.run_folder.damaged", folder=folder, damage=damage)
        return folder

    def _damage(self, step: int) -> str:
        if step not in self._damages:
            self._damages[step] = damage_of(self.path / f"checkpoint-{step}")
        return self._damages[step]

    def _best(self, steps: list[int]) -> Path:
        """Return the folder of the best checkpoint (:mod:`.history`) that is not damaged."""
        metrics = {step: _metric(self.path / f"checkpoint-{step}" / "state.json") for step in steps}
        damaged: list[str] = []
        while found := best_of(metrics.items()):
            best = f"checkpoint-{found[0]}"
            known = found[0] in self._damages
            if not (damage := self._damage(found[0])):
                if damaged and not known:
                    self._say(say("generate.run_folder.used_best_whole", best=best, damaged="; ".join(damaged)))
                return self.path / best
            damaged.append(f"{best} is damaged: {damage}")
            del metrics[found[0]]
        if damaged:
            raise RunError("generate.run_folder.no_checkpoint_run_was_2", path=self.path, damaged="\n  ".join(damaged))
        raise RunError("generate.run_folder.no_checkpoint_run_was", path=self.path)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the run's events in order; a line that a crash or a full disk tore is passed over."""
        path = self.path / "events.jsonl"
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(event, dict):
                    yield event

    def engine(self, checkpoint: Which = "last", *, device: str | None = None) -> Engine:
        """Return the engine of an adapter, loading it on first use.

        The two used most recently stay in memory (such as the tuned model and its base), each a whole model. Raises
        RunError or ModelError if it cannot be loaded.
        """
        key = (checkpoint, device)
        engine = self._engines.pop(key, None)
        if engine is None:
            from weitune.generate.open_model import load_engine

            folder, files = self.adapter_folder(checkpoint), self.base_files()
            while len(self._engines) >= _ENGINES_KEPT:  # before loading, so that three are never in memory
                del self._engines[next(iter(self._engines))]
            engine = load_engine(self.recipe, folder, files=files, device=device)
        self._engines[key] = engine
        return engine

    def chat(
        self,
        text: str,
        *,
        history: History = (),
        system: str | None = None,
        checkpoint: Which = "last",
        device: str | None = None,
        **sampling: Any,
    ) -> str:
        """Return the model's answer to ``text``.

        ``history`` has the turns said before. ``system`` replaces the run's own system prompt; an empty text leaves it
        out. ``sampling`` are fields of :class:`.Sampling`, such as ``temperature=0.7``.
        Raises RunError, ModelError, or InputError if the question is too long for the model.
        """
        from weitune.generate.dialogue import Dialogue
        from weitune.generate.sampling import Sampling

        options = Sampling(**sampling)
        dialogue = Dialogue(self.recipe.system if system is None else system, history)
        stream = dialogue.ask(self.engine(checkpoint, device=device), text, options)
        return "".join(stream)


def _is_adapter(folder: Path) -> bool:
    return holds_adapter(folder) or holds_model(folder)


def _metric(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("metric")
    except (OSError, ValueError, AttributeError):
        return None


def _not_a_run(path: Path) -> RunError:
    """Say what ``path`` is instead of a run, as far as one can tell."""
    fix = say("generate.run_folder.give_folder_weitune_train")
    if not path.exists():
        return RunError("generate.run_folder.there_no_folder", path=path, fix=fix)
    if not path.is_dir():
        return RunError("generate.run_folder.file_not_run_s", path=path, fix=fix)
    if (path / ADAPTER_FILES[0]).is_file() and not (path.parent / "recipe.yaml").is_file():
        return RunError("generate.run_folder.adapter_was_made_elsewhere", path=path)
    if (path.parent / "recipe.yaml").is_file():
        step = _CHECKPOINT.fullmatch(path.name)
        which = f"; choose this adapter with  --checkpoint {step[1]}" if step else ""
        return RunError("generate.run_folder.part_run", path=path, parent=path.parent, which=which)
    return RunError("generate.run_folder.not_run_s_folder", path=path, fix=fix)
