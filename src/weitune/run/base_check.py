"""Check that a run's base model is the one that the run was trained on.

A run records fingerprints of its model and tokenizer (:mod:`.fingerprint`) in ``environment.json`` and in every
checkpoint. All code that opens the run's model gets its files here, so another base is never used silently.

    recorded = now     use the base
    recorded ≠ now     an error that shows both fingerprints; only a note if the user accepts the other base
    nothing recorded   a note: the run was made elsewhere or by an old version
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from weitune.errors import ModelError, RunError
from weitune.files.json_files import json_object
from weitune.messages import say
from weitune.model.load.fingerprint import ADDED, differences
from weitune.model.load.locate import ModelFiles, is_hub_id, locate_base
from weitune.model.load.weight_files import stored_weights
from weitune.progress import Note
from weitune.recipe.schema import Recipe
from weitune.run.names import ENVIRONMENT, RECIPE, STATE, checkpoint_folders

OPTION = "--accept-changed-base"
PLACE = "base place"
"""In ``environment.json``: a base folder or file as the recipe names it, and its absolute path when the run began."""
_NAMES = ("model", "tokenizer", *ADDED)


def recorded_basis(run: Path) -> dict[str, str]:
    """Return the fingerprints of the base that ``run`` recorded; none if it has no record."""
    newest_first = [folder for _, folder in reversed(checkpoint_folders(run))]
    for path in (run / ENVIRONMENT, *(folder / STATE for folder in (*newest_first, run))):
        if basis := fingerprints_in(json_object(path).get("basis")):
            return basis
    return {}


def fingerprints_in(basis: object) -> dict[str, str]:
    """Return the fingerprints of model and tokenizer in a run's ``basis``."""
    if not isinstance(basis, Mapping):
        return {}
    return {name: str(basis[name]) for name in _NAMES if isinstance(basis.get(name), str)}


def place_of_base(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return a run's record of the path of its base; empty unless the recipe names it by a relative path."""
    path = Path(recipe.model)
    if recipe.model.startswith(("builtin:", "~")) or path.is_absolute() or not path.exists():
        return {}
    return {PLACE: {"model": recipe.model, "path": str(path.absolute())}}


def with_reachable_model(run: Path, recipe: Recipe) -> Recipe:
    """Return the ``recipe`` of ``run``; if its relative model path does not exist here, with the recorded path."""
    place = _recorded_place(run, recipe)
    if place is None or Path(recipe.model).exists() or not place.exists():
        return recipe
    return recipe.model_copy(update={"model": str(place)})


def checked_base(run: Path, recipe: Recipe, recorded: Mapping[str, str], *, accept: bool, note: Note) -> ModelFiles:
    """Return the files of the base of ``run``, downloading them if they are not here.

    Raises ModelError if the base cannot be located, and RunError if it differs from the ``recorded`` one and the user
    does not ``accept`` that.
    """
    _check_not_lost(run, recipe)
    files = locate_base(recipe)
    if not recorded:
        note(say("run.base_check.not_recorded", run=run, model=recipe.model))
        if not files.gguf:
            stored_weights(files.folder)  # raises ModelError if programs would read different weights from it
        return files
    changed = differences(recorded, files)
    if not changed:
        return files
    earlier = _earlier_commit(files, recorded)
    if earlier is not None:
        note(_moved_on(run, recipe, earlier))
        return earlier
    changes = "\n  ".join(changed)
    if accept:
        note(say("run.base_check.other_base_accepted", run=run, changes=changes))
        return files
    values = {"run": run, "path": files.path, "changes": changes, "option": OPTION}
    if is_hub_id(recipe.model):
        raise RunError("run.base_check.other_revision", **values, recipe=run / RECIPE)
    raise RunError("run.base_check.other_base", **values, model=recipe.model)


def pinned(run: Path, recipe: Recipe, recorded: Mapping[str, str], note: Note) -> Recipe:
    """Return ``recipe`` with the recorded path of its model, or the recorded commit if the hub has a newer one.

    A version that did not record the commit may have begun the run.
    """
    recipe = with_reachable_model(run, recipe)
    _check_not_lost(run, recipe)
    if not recorded or not is_hub_id(recipe.model):
        return recipe
    files = locate_base(recipe)
    earlier = _earlier_commit(files, recorded) if differences(recorded, files) else None
    if earlier is None:
        return recipe
    note(_moved_on(run, recipe, earlier))
    return recipe.model_copy(update={"revision": earlier.commit})


def _check_not_lost(run: Path, recipe: Recipe) -> None:
    """Raise ModelError if the base was a folder that is gone; its relative path must not be taken for a hub id."""
    place = _recorded_place(run, recipe)
    if place is not None and not Path(recipe.model).exists():
        raise ModelError("run.base_check.base_gone", run=run, place=place, recipe=run / RECIPE)


def _recorded_place(run: Path, recipe: Recipe) -> Path | None:
    """Return the path of the base when ``run`` began; None if none is recorded for the model of the recipe."""
    place = json_object(run / ENVIRONMENT).get(PLACE)
    known = isinstance(place, dict) and place.get("model") == recipe.model and isinstance(place.get("path"), str)
    return Path(place["path"]) if isinstance(place, dict) and known else None


def _moved_on(run: Path, recipe: Recipe, earlier: ModelFiles) -> str:
    return say("run.base_check.hub_moved_on", model=recipe.model, commit=earlier.commit, run=run)


def _earlier_commit(files: ModelFiles, recorded: Mapping[str, str]) -> ModelFiles | None:
    if files.commit is None:
        return None
    for folder in sorted(files.folder.parent.iterdir()):
        snapshot = ModelFiles(folder, commit=folder.name, adapter=files.adapter)
        try:
            if folder != files.folder and not differences(recorded, snapshot):
                return snapshot
        except ModelError:  # a snapshot without weights
            continue
    return None
