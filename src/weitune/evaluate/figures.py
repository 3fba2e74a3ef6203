"""The figures of evaluated models as a table, for the terminal, the report and the model card alike."""

from __future__ import annotations

from collections.abc import Sequence

from weitune.evaluate.evaluation import GateCheck, GeneralScores, ModelScores, PairScores, Scores
from weitune.evaluate.intervals import Change
from weitune.messages import say


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


def figures(models: Sequence[ModelScores]) -> list[list[str]]:
    """Return one row for each measure: its name and its value for every model."""
    rows = [
        [say("evaluate.figures.loss"), *(_number(model.loss) for model in models)],
        [say("evaluate.figures.perplexity"), *(_number(model.perplexity) for model in models)],
    ]
    pairs = [model.pairs for model in models if model.pairs]
    if len(pairs) == len(models):
        rows += _pair_rows(pairs)
    if any(model.scores for model in models):
        rows += [[name, *(_measure(model.scores, field) for model in models)] for field, name in measures().items()]
    general = [model.general for model in models if model.general]
    if len(general) == len(models):
        rows.append([say("evaluate.figures.general_loss"), *(_number(scores.loss) for scores in general)])
        for language in general[0].right:
            right = say("evaluate.figures.general_right", language=language)
            rows.append([right, *(_right(scores, language) for scores in general)])
    if any(model.memorised for model in models):
        rows.append([say("evaluate.figures.memorised"), *(_memorised(model) for model in models)])
    return rows


def described(check: GateCheck) -> str:
    """Return a line about one check of ``--gate``."""
    values = {"which": check.which, "base": check.base, "tuned": check.tuned, "bound": check.bound}
    if check.language is not None:
        return say("evaluate.figures.gate_general", language=check.language, **values)
    return say("evaluate.figures.gate_share", measure=measures()[check.measure], **values)


def _pair_rows(models: Sequence[PairScores]) -> list[list[str]]:
    return [
        [say("evaluate.figures.pairs_preferred"), *(_share(model.preferred, model.interval) for model in models)],
        [say("evaluate.figures.pairs_gained"), *(_share(model.gained) for model in models)],
        [say("evaluate.figures.pairs_chosen"), *(_number(model.chosen) for model in models)],
        [say("evaluate.figures.pairs_rejected"), *(_number(model.rejected) for model in models)],
    ]


def _share(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.0%}" if interval is None else f"{value:.0%} ({interval[0]:.0%}–{interval[1]:.0%})"


def _right(scores: GeneralScores, language: str) -> str:
    share, change = scores.right[language], scores.change.get(language)
    return f"{share:.0%}" if change is None else f"{share:.0%} ({points(change)})"


def points(change: Change) -> str:
    """Return a change in percentage points with its interval."""
    return say("evaluate.figures.points", value=100 * change.value, low=100 * change.low, high=100 * change.high)


def _memorised(model: ModelScores) -> str:
    found = model.memorised
    return "–" if found is None else say("evaluate.figures.of", part=found.repeated, whole=found.asked)


def _measure(scores: Scores | None, field: str) -> str:
    """Return a measure, with its 95 % interval if it is a share."""
    shown = _number(getattr(scores, field, None))
    ends = scores.intervals.get(field) if scores is not None else None
    return shown if ends is None else f"{shown} ({ends[0]:.2f}–{ends[1]:.2f})"


def _number(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, int | float) else "–"
