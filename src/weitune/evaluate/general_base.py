"""What a base says to the general questions, kept in the cache: every run of that base is compared with the same.

    ~/.cache/weitune/general/<fingerprint>.json      {"answers": […], "loss": {"sum": …, "weight": …}}

The fingerprint is that of the base, of the questions, and of everything that decides the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weitune.evaluate.general import GeneralQuestion
from weitune.evaluate.loss import MeasuredLoss
from weitune.files.cache import cached_file, read_cached, store_cached

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

    ``about`` are JSON values that tell the base and how it is asked.
    """
    parts = {"questions": [[question.prompt, question.answer] for question in questions], "version": _VERSION, **about}
    place = cached_file("general", parts, ".json")
    known = read_cached(place, _from_bytes)
    if known is not None and len(known.answers) == len(questions):
        return known
    result = measure()
    store_cached(place, _to_bytes(result))
    return result


def _to_bytes(result: GeneralResult) -> bytes:
    loss = {"sum": result.loss.sum, "weight": result.loss.weight}
    return json.dumps({"answers": result.answers, "loss": loss}, ensure_ascii=False).encode()


def _from_bytes(contents: bytes) -> GeneralResult:
    values = json.loads(contents)
    answers = [str(each) for each in values["answers"]]
    return GeneralResult(answers, MeasuredLoss(float(values["loss"]["sum"]), float(values["loss"]["weight"])))
