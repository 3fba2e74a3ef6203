"""What ``weitune eval`` finds about a base and its adapters, and the file ``evaluation.json`` that keeps it.

Only values: reading an evaluation needs neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weitune.evaluate.intervals import Change
from weitune.files.json_files import json_bytes, record_from
from weitune.files.publish import publish_bytes
from weitune.run.names import EVALUATION


@dataclass(frozen=True, slots=True)
class EvaluatedRows:
    """Which rows the models were evaluated on: examples for the loss, questions for answers."""

    name: str
    examples: int
    questions: int


@dataclass(frozen=True, slots=True)
class Scores:
    """The measures of one model's answers (:mod:`.metrics`); None where there is no reference to compare with."""

    answers: int | None = None
    chrf: float | None = None
    bleu: float | None = None
    rouge_l: float | None = None
    exact: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    stopped: float | None = None
    repeating: float | None = None
    tokens: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The 95 % interval of every measure that is a share (:mod:`.intervals`)."""


@dataclass(frozen=True, slots=True)
class GeneralScores:
    """The check for forgetting (:mod:`.general`): the share of right answers by language, and the loss in nats.

    The loss is None where it is not a finite number."""

    right: Mapping[str, float]
    loss: float | None
    change: Mapping[str, Change] = field(default_factory=dict)
    """How each share changed from the base, with its 95 % interval over the same questions; empty for the base."""


@dataclass(frozen=True, slots=True)
class Memorised:
    """How many training answers a model repeats word by word when it is asked their questions."""

    asked: int
    repeated: int

    @property
    def share(self) -> float:
        return self.repeated / self.asked


@dataclass(frozen=True, slots=True)
class PairScores:
    """How a model sees chosen and rejected answers (:mod:`.pairs`); None where there is nothing to compare."""

    pairs: int
    preferred: float | None
    """Share of pairs whose chosen answer is likelier, per token."""
    gained: float | None
    """Share of pairs whose chosen answer gained more over the base than the rejected one; None for the base."""
    chosen: float | None
    """Mean log-probability of a token of a chosen answer, in nats."""
    rejected: float | None
    interval: tuple[float, float] | None = None
    """The 95 % interval of ``preferred``."""


@dataclass(frozen=True, slots=True)
class ModelScores:
    """The results of one model: ``base``, ``last``, ``best`` or ``step N``."""

    which: str
    step: int | None
    """The step at which the adapter was saved, if that is known; None for the base."""
    loss: float | None
    """None without examples, or where it is not a finite number."""
    perplexity: float | None
    """None where it is too large for a number."""
    scores: Scores | None = None
    general: GeneralScores | None = None
    memorised: Memorised | None = None
    pairs: PairScores | None = None
    """None for a run that did not learn from preferences."""


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question of the data, the data's answer, and what each model said."""

    prompt: str
    reference: str | None
    said: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AnsweredGeneralQuestion:
    """A general question, the words of which a right answer has one, and what each model said."""

    prompt: str
    accept: Sequence[str]
    said: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One bound of ``--gate`` and whether a model keeps it."""

    which: str
    """the model"""
    measure: str
    """``general``, ``stopped`` or ``repeating``"""
    language: str | None
    """of general questions"""
    base: float
    tuned: float
    bound: float
    """the most percentage points by which the model may be worse than its base"""
    passed: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """The verdict of ``--gate``: whether every model keeps every bound."""

    passed: bool
    checks: Sequence[GateCheck]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often a judge preferred the answers of ``which`` to those of the base."""

    pairs: int
    wins: int
    losses: int
    rate: float
    """Wins and half the ties, of all pairs."""
    low: float
    high: float
    """Wilson's score interval of 95 % (Wilson 1927)."""
    which: str = ""
    judge: str = ""
    """Name of the model that judged."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation of a base and its adapters; the fields are those of ``evaluation.json``."""

    rows: EvaluatedRows
    max_new_tokens: int | None
    models: Sequence[ModelScores]
    answers: Sequence[AnsweredQuestion] = ()
    general: Sequence[AnsweredGeneralQuestion] = ()
    win_rate: WinRate | None = None
    gate: Gate | None = None
    """None without ``--gate``"""
    schema: Mapping[str, Any] | None = None
    """The JSON schema that answers to the questions of the rows were kept to"""

    @property
    def judged(self) -> tuple[ModelScores, ModelScores] | None:
        """The base, and the model to judge by: the last one that is not the base; None if one of them is missing."""
        base = next((model for model in self.models if model.which == "base"), None)
        tuned = next((model for model in reversed(self.models) if model.which != "base"), None)
        return (base, tuned) if base is not None and tuned is not None else None

    def to_json(self) -> dict[str, Any]:
        tree = asdict(self)
        for model in tree["models"]:
            model["scores"] = scores = model["scores"] or {}
            if scores:
                scores["intervals"] = {name: list(ends) for name, ends in scores["intervals"].items()}
        return tree

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` into ``folder`` in one moment. Raises OSError if the system refuses."""
        publish_bytes(json_bytes(self.to_json(), indent=1, allow_nan=False), folder / EVALUATION)


def read_evaluation(folder: Path) -> Evaluation | None:
    """Return the evaluation in ``folder``; None if there is none, or none that can be read."""
    try:
        tree = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        return Evaluation(
            rows=record_from(EvaluatedRows, tree["rows"]),
            max_new_tokens=tree.get("max_new_tokens"),
            models=[_model(model) for model in tree["models"]],
            answers=[record_from(AnsweredQuestion, answer) for answer in tree.get("answers", ())],
            general=[record_from(AnsweredGeneralQuestion, answer) for answer in tree.get("general", ())],
            win_rate=record_from(WinRate, tree["win_rate"]) if tree.get("win_rate") else None,
            gate=_gate(tree["gate"]) if tree.get("gate") else None,
            schema=tree.get("schema"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _model(tree: Mapping[str, Any]) -> ModelScores:
    scores = record_from(Scores, _with_intervals(tree["scores"])) if tree.get("scores") else None
    general = record_from(GeneralScores, _with_changes(tree["general"])) if tree.get("general") else None
    memorised = record_from(Memorised, tree["memorised"]) if tree.get("memorised") else None
    pairs = record_from(PairScores, _with_interval(tree["pairs"])) if tree.get("pairs") else None
    values = {"scores": scores, "general": general, "memorised": memorised, "pairs": pairs}
    return record_from(ModelScores, {**tree, **values})


def _gate(tree: Mapping[str, Any]) -> Gate:
    return Gate(tree["passed"], [record_from(GateCheck, check) for check in tree["checks"]])


def _with_intervals(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**tree, "intervals": {name: tuple(ends) for name, ends in tree.get("intervals", {}).items()}}


def _with_interval(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**tree, "interval": tuple(tree["interval"]) if tree.get("interval") else None}


def _with_changes(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    changes = tree.get("change", {}).items()
    return {**tree, "change": {language: record_from(Change, change) for language, change in changes}}
