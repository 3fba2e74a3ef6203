"""Create a run's folder atomically; read and update what it records."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weitune.errors import RecipeError, RunError
from weitune.files.json_files import json_bytes
from weitune.files.paths import user_path
from weitune.files.publish import (
    flush,
    flush_all,
    folder_written_aside,
    is_left_behind,
    own_partial,
    publish_bytes,
    remove,
    remove_abandoned,
    write_bytes,
)
from weitune.recipe.load import build_recipe, dump_recipe, read_recipe_file, recorded
from weitune.recipe.schema import Recipe
from weitune.run.names import DATA, ENVIRONMENT, EVENTS, LOCK, RECIPE, STOP
from weitune.shell import shell_command


def output_folder(recipe: Recipe) -> Path:
    """Return where the run of ``recipe`` goes: its ``output``, or ``runs/<model>-<time>``."""
    if recipe.output:
        return user_path(recipe.output)
    name = re.sub(r"[^\w.-]+", "-", Path(recipe.model.removeprefix("builtin:")).name).strip("-.")
    return Path("runs") / f"{name or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_free(folder: Path) -> None:
    """Raise RunError unless a new run can be put into ``folder``.

    What a killed process left may be there, and a stop file.
    """
    if (folder / RECIPE).exists():
        raise RunError(
            "run.create.already_holds_a_run", folder=folder, command=shell_command("train", "--resume", folder)
        )
    no_folder = (folder.exists() or folder.is_symlink()) and not folder.is_dir()
    contents = folder.iterdir() if folder.is_dir() else ()
    if no_folder or not all(path.name in {LOCK, STOP} or is_left_behind(path) for path in contents):
        raise RunError("run.create.not_an_empty_folder", folder=folder)


def holds_run(folder: Path) -> bool:
    """Return whether ``folder`` holds a run. Raises RunError if it holds other files."""
    if (folder / RECIPE).is_file():
        return True
    check_free(folder)
    return False


def check_named(recipe: Recipe) -> None:
    """Raise RecipeError unless ``recipe`` has an ``output``: the default folder's name contains the time."""
    if not recipe.output:
        raise RecipeError("run.create.resume_existing_needs_output")


def check_run(folder: Path) -> None:
    """Raise RunError unless ``folder`` holds a run."""
    if not (folder / RECIPE).is_file():
        raise RunError("run.create.no_run_to_resume", folder=folder, recipe=RECIPE)


def create_folder(
    folder: Path,
    recipe: Recipe,
    environment: Mapping[str, Any],
    data: Mapping[str, Any],
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Make the run's folder with its first files and those in ``more``, all or nothing. Raises RunError if that fails.

    If two processes do this at the same time, one of them gets the folder and the other the error.
    """
    files = {
        RECIPE: dump_recipe(recipe).encode(),
        ENVIRONMENT: json_bytes(environment, default=str),
        DATA: json_bytes(data, default=str),
        EVENTS: b"",
        **(more or {}),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_written_aside(folder, own_partial(folder), _publish_if_free) as partial:
            for name, contents in files.items():
                write_bytes(partial / name, contents)
        remove_abandoned(folder)
    except OSError as error:
        check_free(folder)
        raise RunError("run.create.cannot_be_made", folder=folder, error=error) from None


def _publish_if_free(partial: Path, folder: Path) -> None:
    """Flush ``partial`` and rename it to ``folder``. Raises RunError if there is another run."""
    flush_all(partial)
    left = list(folder.iterdir()) if folder.is_dir() else []  # listed first: what comes later is another's run
    check_free(folder)
    stopping = folder / STOP in left
    for path in left:
        remove(path)
    if os.name == "nt" and folder.is_dir():
        folder.rmdir()  # elsewhere, an empty folder gives way, and only an empty one
    partial.rename(folder)
    if stopping:
        (folder / STOP).touch()
    flush(folder.parent)


def load_recorded(folder: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe that the run in ``folder`` records, changed by ``overrides``."""
    return build_recipe(recorded(read_recipe_file(str(folder / RECIPE))), overrides)


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what :func:`create_folder` recorded as ``environment``. Raises RunError if it cannot be read."""
    path = folder / ENVIRONMENT
    try:
        environment: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError("run.create.cannot_be_read", path=path, error=error) from None
    return environment


def update_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe of a resumed run if it has changed. Raises OSError if that fails."""
    contents = dump_recipe(recipe).encode()
    if (folder / RECIPE).read_bytes() != contents:
        publish_bytes(contents, folder / RECIPE)
