"""What may differ when a run is resumed, and what may not.

The steps to come must be those that would have come without the stop. Two things are compared with what the run began
with: the recipe, key by key, and the *basis*, fingerprints of everything outside the recipe that decides the numbers.
Paths of model and data may change; their contents may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from weitune.errors import RunError
from weitune.files.json_files import leaves
from weitune.messages import joined, say
from weitune.model.load.fingerprint import ADDED
from weitune.recipe.load import fields
from weitune.recipe.schema import Recipe

MAY_CHANGE = {
    "train.epochs": "schedule",
    "train.max_steps": "schedule",
    "train.micro_tokens": "rounding",
    "train.recompute": "",
    "train.shard": "",
    "train.log_every": "",
    "train.checkpoint_every": "",
    "train.keep_checkpoints": "",
    "train.evaluate_every": "",
    "train.patience": "",
    "train.sample_prompts": "",
    "train.sample_schema": "",
    "train.sample_tokens": "",
    "log.trackers": "",
    "train.save_on_each_node": "",
}
"""Keys that may have other values, and what follows: another schedule, or rounding."""
_PLACES = ("model", "hub", "revision", "data", "weights", "output", "lora.init_from")
"""Keys that name places. They may change; the contents of input files are compared through the basis."""

Basis = Mapping[str, Any]
"""By the name that people read: fingerprints, or values that say more than one."""


def recipe_changes(before: Recipe, now: Recipe) -> list[tuple[str, Any, Any]]:
    """Return every key with another value: its dotted name, the value before and now. Places are left out."""
    values = [(key, _value(before, key), _value(now, key)) for key, _ in fields() if key not in _PLACES]
    return [(key, old, new) for key, old, new in values if old != new]


def check_recipe(run: Path, before: Recipe, now: Recipe) -> list[str]:
    """Return a line for each key that has changed and may. Raises RunError if one has that may not."""
    changes = recipe_changes(before, now)
    refused = [_difference(key, old, new) for key, old, new in changes if key not in MAY_CHANGE]
    if refused:
        raise _refusal(run, refused)
    return [_change(key, old, new) for key, old, new in changes]


def _change(key: str, old: object, new: object) -> str:
    match MAY_CHANGE[key]:
        case "schedule":
            return say("training.resume_checks.changed_schedule", key=key, old=old, new=new)
        case "rounding":
            return say("training.resume_checks.changed_rounding", key=key, old=old, new=new)
        case _:
            return say("training.resume_checks.changed", key=key, old=old, new=new)


def _difference(key: str, old: object, new: object) -> str:
    return say("training.resume_checks.difference", key=key, old=old, new=new)


def check_basis(run: Path, before: Basis, now: Basis) -> None:
    """Raise RunError if anything that the numbers depend on is not what it was.

    What an older version did not record yet is not compared.
    """
    old, new = dict(leaves(before)), dict(leaves(now))
    refused = [
        _difference(key, _brief(old.get(key)), _brief(new.get(key)))
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not (key in ADDED and key not in old)
    ]
    if refused:
        raise _refusal(run, refused)


def check_length(run: Path, done: int, steps: int) -> None:
    """Raise RunError if the run has done more than the ``steps`` that its recipe asks for now."""
    if done > steps:
        raise RunError("training.resume_checks.too_short", run=run, done=done, steps=steps)


def _refusal(run: Path, differences: list[str]) -> RunError:
    shown = joined("\n  ", differences)
    return RunError(
        "training.resume_checks.not_the_same_run", run=run, differences=shown, may_change=", ".join(MAY_CHANGE)
    )


def _value(recipe: Recipe, key: str) -> Any:
    """Return the value of ``key``: of a group, only that it is one; of a key in a group that is not there, None."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part, None)
    if isinstance(value, BaseModel):
        return say("training.resume_checks.group")
    if key == "encoding" and isinstance(value, dict):
        return say("training.resume_checks.by_file")  # the files may have moved; what they hold is in the basis
    if key == "validation" and isinstance(value, list):
        return say("training.resume_checks.files")  # what they hold is in the basis
    return value


def _brief(value: Any) -> str:
    """Return ``value`` in a few words: of a fingerprint or a long text its beginning."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:16]}…"
