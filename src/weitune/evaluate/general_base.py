"""What a base says to the general questions, kept in the cache: every run of that base is compared with the same.

    ~/.cache/weitune/general/<fingerprint>.json      {"answers": […], "loss": {"sum": …, "weight": …}}

The fingerprint is that of the base, of the questions, and of everything that decides the numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from weitune.evaluate.general import GeneralQuestion
from weitune.evaluate.loss import MeasuredLoss
from weitune.files.cache import cache_folder, mark_used
from weitune.files.publish import publish_bytes

_VERSION = 1
"""Raised when the same base would be found to say something else."""


@dataclass(frozen=True, slots=True)
class GeneralResult:
    """A model's answers to the general questions, and the loss of the plain answers."""

    answers: list[str]
    loss: MeasuredLoss


def of_base(
    questions: Sequence[GeneralQuestion], about: Mapping[str, Any], measure: Callable[[], GeneralResult]
) -> GeneralResult:
    """Return what ``measure`` returns for a base, from the cache if it has been measured before.

    ``about`` are JSON values that tell the base and how it is asked. A cache that cannot be read or written does not
    matter.
    """
    parts = {
        "questions": [[question.prompt, question.answer] for question in questions],
        "versions": [_VERSION, version("weitune"), torch.__version__],
        "threads": torch.get_num_threads(),
        **about,
    }
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    place = cache_folder() / "general" / f"{name}.json"
    known = _read(place)
    if known is not None and len(known.answers) == len(questions):
        mark_used(place)
        return known
    result = measure()
    _store(result, place)
    return result


def _read(place: Path) -> GeneralResult | None:
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
        answers = [str(each) for each in values["answers"]]
        return GeneralResult(answers, MeasuredLoss(float(values["loss"]["sum"]), float(values["loss"]["weight"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(result: GeneralResult, place: Path) -> None:
    loss = {"sum": result.loss.sum, "weight": result.loss.weight}
    contents = json.dumps({"answers": result.answers, "loss": loss}, ensure_ascii=False)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(contents.encode(), place)
    except OSError:
        return
