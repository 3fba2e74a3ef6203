"""The folder of a search.

tunes/20260101-120000/
  recipe.yaml     the recipe whose settings are searched
  tune.json       what is searched, the fingerprints of everything that decides the losses, and the machine, precision
                  and division of steps into passes that all trials are computed with
  events.jsonl    one line for each trial that is done
  best.yaml       the recipe with the settings found, and the reasons as comments
  tune.html       every trial on one page

A trial is written down when it is done; one that was interrupted is made again from its start, which gives the same
bits. Whoever holds the lock may write.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weitune.errors import RunError
from weitune.files.json_files import json_bytes, json_object, json_text, record_from
from weitune.files.publish import folder_written_aside, own_partial, publish_bytes, publish_new, write_bytes
from weitune.recipe.load import dump_recipe
from weitune.recipe.schema import Recipe
from weitune.run.create import load_recorded
from weitune.run.names import EVENTS, RECIPE, STOP
from weitune.tune.search import Candidate, Trial
from weitune.tune.trials import Outcome

SETTINGS, BEST, PAGE = "tune.json", "best.yaml", "tune.html"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is searched, and on what."""

    also: Sequence[str]
    budget: float
    basis: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)
    """How trials are computed, as a run records it; empty until the first trial begins."""
    held_out: bool = False
    """Whether it is the search that holds rows out, not the recipe."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What of the recipe decides the losses of trials besides ``basis``; empty in searches of older versions."""


def default_folder() -> Path:
    """Return a new folder's name, by the time."""
    return Path("tunes") / time.strftime("%Y%m%d-%H%M%S")


def create(folder: Path, recipe: Recipe, settings: Settings) -> None:
    """Make the folder with its first files, all or nothing. Raises RunError if it cannot be made or is not empty.

    A stop file may be there, and stays.
    """
    left = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if (folder.exists() and not folder.is_dir()) or set(left) - {STOP}:
        raise RunError("tune.folder.not_empty", folder=folder)
    files = {RECIPE: dump_recipe(recipe).encode(), SETTINGS: _settings_bytes(settings), EVENTS: b""}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            (folder / STOP).unlink(missing_ok=True)
            folder.rmdir()
        with folder_written_aside(folder, own_partial(folder), _publish_if_free) as partial:
            for name, contents in files.items():
                write_bytes(partial / name, contents)
            if left:
                (partial / STOP).touch()
    except OSError as error:
        raise RunError("tune.folder.cannot_be_made", folder=folder, error=error) from None


def _publish_if_free(partial: Path, folder: Path) -> None:
    """Flush ``partial`` and rename it to ``folder``. Raises RunError if another search was faster."""
    if not publish_new(partial, folder):
        raise RunError("tune.folder.not_empty", folder=folder)


def read(folder: Path) -> tuple[Recipe, Settings]:
    """Return the recipe and the settings of the search in ``folder``. Raises RunError if it holds none."""
    tree = json_object(folder / SETTINGS)
    if not tree or not (folder / RECIPE).is_file():
        raise RunError("tune.folder.no_search", folder=folder)
    try:
        return load_recorded(folder), record_from(Settings, tree)
    except TypeError as error:
        raise RunError("tune.folder.cannot_be_read", path=folder / SETTINGS, error=error) from None


def write(folder: Path, settings: Settings) -> None:
    """Write ``settings`` in place of those in ``folder``. Raises RunError if that fails."""
    try:
        publish_bytes(_settings_bytes(settings), folder / SETTINGS)
    except OSError as error:
        raise RunError("tune.folder.cannot_be_written", path=folder / SETTINGS, error=error) from None


def _settings_bytes(settings: Settings) -> bytes:
    return json_bytes(asdict(settings), default=str)


def append(folder: Path, outcome: Outcome) -> None:
    """Write down that a trial is done. Raises RunError if that fails."""
    line = {"event": "trial", **asdict(outcome)}
    line["loss"] = outcome.loss if outcome.loss != float("inf") else None
    try:
        with (folder / EVENTS).open("ab") as file:
            file.write((json_text(line) + "\n").encode())
    except OSError as error:
        raise RunError("tune.folder.cannot_be_written", path=folder / EVENTS, error=error) from None


def outcomes(folder: Path) -> list[Outcome]:
    """Return the trials that are done; a line that a kill has torn is removed, and so counts as not done.

    Raises RunError if the file is not there or is not that of a search.
    """
    try:
        return _outcomes(folder / EVENTS)
    except (OSError, KeyError, TypeError) as error:
        raise RunError("tune.folder.cannot_be_read", path=folder / EVENTS, error=error) from None


def publish_found(folder: Path, recipe: str, page: str) -> None:
    """Write the recipe and the page of what was found. Raises RunError if that fails."""
    try:
        publish_bytes(recipe.encode(), folder / BEST)
        publish_bytes(page.encode(), folder / PAGE)
    except OSError as error:
        raise RunError("tune.folder.cannot_be_written", path=folder / BEST, error=error) from None


def _outcomes(path: Path) -> list[Outcome]:
    whole, done = b"", []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            tree = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            tree = None
        if tree is None:
            publish_bytes(whole, path)
            break
        whole += line
        done.append(_outcome(tree))
    return done


def _outcome(tree: Mapping[str, Any]) -> Outcome:
    trial = tree["trial"]
    candidate = record_from(Candidate, trial["candidate"])
    loss = float("inf") if tree["loss"] is None else tree["loss"]
    made = Trial(trial["rung"], candidate, trial["steps"], trial["rows"], trial["rate"])
    return Outcome(made, loss, tree["seconds"], tuple(tree["losses"]))
