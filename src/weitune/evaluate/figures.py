"""The figures of evaluated models as a table, for the terminal, the report and the model card alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from weitune.evaluate.evaluation import GateCheck, GeneralScores, ModelScores, PairScores, Scores
from weitune.evaluate.intervals import Change
from weitune.messages import joined, say


def measures() -> dict[str, str]:
    """Return the name of each measure that is shown, by its field in :class:`.Scores`."""
    return {
        "chrf": "chrF",
        "bleu": "BLEU",
        "rouge_l": "ROUGE-L",
        "exact": say("evaluate.figures.exact"),
        "distinct_1": "distinct-1",
        "distinct_2": "distinct-2",
        "stopped": say("evaluate.figures.stopped"),
        "repeating": say("evaluate.figures.repeating"),
        "tokens": say("evaluate.figures.tokens"),
    }


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure of several models."""

    name: str
    about: str
    """What it measures, in a few words."""
    better: Literal["higher", "lower", ""]
    """Which direction is better; empty where neither is."""
    values: Sequence[float | None]
    """One for each model."""
    shown: Sequence[str]
    fallen: Sequence[bool] = ()
    """Whether a model is worse than its base by more than chance explains, where that is known."""

    @property
    def best(self) -> float | None:
        """The best value; None where there is no better one, or all are equal."""
        known = {value for value in self.values if value is not None}
        if not self.better or len(known) < 2:
            return None
        return max(known) if self.better == "higher" else min(known)


def figures(models: Sequence[ModelScores]) -> list[list[str]]:
    """Return one row for each measure: its name and its value for every model."""
    return [[figure.name, *figure.shown] for figure in measured(models)]


def measured(models: Sequence[ModelScores]) -> list[Figure]:
    """Return every measure that was taken of ``models``."""
    found = [
        _numbers("loss", say("evaluate.figures.loss"), "lower", [model.loss for model in models]),
        _numbers("perplexity", say("evaluate.figures.perplexity"), "lower", [model.perplexity for model in models]),
    ]
    pairs = [model.pairs for model in models if model.pairs]
    if len(pairs) == len(models):
        found += _pair_figures(pairs)
    if any(model.scores for model in models):
        scores = [model.scores for model in models]
        found += [_measure(field, name, scores) for field, name in measures().items()]
    general = [model.general for model in models if model.general]
    if len(general) == len(models):
        losses = [scores.loss for scores in general]
        found.append(_numbers("general_loss", say("evaluate.figures.general_loss"), "lower", losses))
        found += [_right(general, language) for language in general[0].right]
    if any(model.memorised for model in models):
        found.append(_memorised(models))
    return found


def _about() -> dict[str, str]:
    """Return what each measure tells, by its field."""
    return {
        "loss": say("evaluate.figures.about_loss"),
        "perplexity": say("evaluate.figures.about_perplexity"),
        "chrf": say("evaluate.figures.about_chrf"),
        "bleu": say("evaluate.figures.about_bleu"),
        "rouge_l": say("evaluate.figures.about_rouge_l"),
        "exact": say("evaluate.figures.about_exact"),
        "distinct_1": say("evaluate.figures.about_distinct_1"),
        "distinct_2": say("evaluate.figures.about_distinct_2"),
        "stopped": say("evaluate.figures.about_stopped"),
        "repeating": say("evaluate.figures.about_repeating"),
        "tokens": say("evaluate.figures.about_tokens"),
        "general_loss": say("evaluate.figures.about_general_loss"),
        "general_right": say("evaluate.figures.about_general_right"),
        "memorised": say("evaluate.figures.about_memorised"),
        "preferred": say("evaluate.figures.about_pairs_preferred"),
        "gained": say("evaluate.figures.about_pairs_gained"),
        "chosen": say("evaluate.figures.about_pairs_chosen"),
        "rejected": say("evaluate.figures.about_pairs_rejected"),
    }


_BETTER: Mapping[str, Literal["higher", "lower", ""]] = {"repeating": "lower", "tokens": ""}
"""Of the measures of answers; of the others, more is better."""


def _numbers(field: str, name: str, better: Literal["higher", "lower", ""], values: Sequence[float | None]) -> Figure:
    return Figure(name, _about()[field], better, values, [_number(value) for value in values])


def described(check: GateCheck) -> str:
    """Return a line about one check of ``--gate``."""
    values = {"which": check.which, "base": check.base, "tuned": check.tuned, "bound": check.bound}
    if check.language is not None:
        return say("evaluate.figures.gate_general", language=check.language, **values)
    return say("evaluate.figures.gate_share", measure=measures()[check.measure], **values)


def _pair_figures(models: Sequence[PairScores]) -> list[Figure]:
    about, preferred, gained = _about(), [m.preferred for m in models], [m.gained for m in models]
    shares = [_share(model.preferred, model.interval) for model in models]
    return [
        Figure(say("evaluate.figures.pairs_preferred"), about["preferred"], "higher", preferred, shares),
        Figure(say("evaluate.figures.pairs_gained"), about["gained"], "higher", gained, [_share(g) for g in gained]),
        _numbers("chosen", say("evaluate.figures.pairs_chosen"), "higher", [model.chosen for model in models]),
        _numbers("rejected", say("evaluate.figures.pairs_rejected"), "", [model.rejected for model in models]),
    ]


def _share(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.0%}" if interval is None else f"{value:.0%} ({interval[0]:.0%}–{interval[1]:.0%})"


def _right(models: Sequence[GeneralScores], language: str) -> Figure:
    changes = [scores.change.get(language) for scores in models]
    shares = [scores.right[language] for scores in models]
    shown = [
        f"{a:.0%}" if b is None else joined("", [f"{a:.0%} (", points(b), ")"])
        for a, b in zip(shares, changes, strict=True)
    ]
    fallen = [change is not None and change.high < 0 for change in changes]
    name = say("evaluate.figures.general_right", language=language)
    return Figure(name, _about()["general_right"], "higher", shares, shown, fallen)


def points(change: Change) -> str:
    """Return a change in percentage points with its interval."""
    return say("evaluate.figures.points", value=100 * change.value, low=100 * change.low, high=100 * change.high)


def _memorised(models: Sequence[ModelScores]) -> Figure:
    found = [model.memorised for model in models]
    shown = [say("evaluate.figures.of", part=f.repeated, whole=f.asked) if f is not None else "–" for f in found]
    shares = [each.share if each is not None and each.asked else None for each in found]
    return Figure(say("evaluate.figures.memorised"), _about()["memorised"], "lower", shares, shown)


def _measure(field: str, name: str, models: Sequence[Scores | None]) -> Figure:
    """Return a measure of answers, with its 95 % intervals if it is a share."""
    values = [getattr(scores, field, None) for scores in models]
    ends = [scores.intervals.get(field) if scores is not None else None for scores in models]
    shown = [
        _number(value) if pair is None else f"{_number(value)} ({pair[0]:.2f}–{pair[1]:.2f})"
        for value, pair in zip(values, ends, strict=True)
    ]
    return Figure(name, _about()[field], _BETTER.get(field, "higher"), values, shown)


def _number(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"
