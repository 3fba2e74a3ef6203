"""The figures of evaluated models as a table, for the terminal, the report and the model card alike."""

from __future__ import annotations

from collections.abc import Sequence

from weitune.evaluate.evaluation import ModelScores
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
        "tokens": say("evaluate.figures.tokens"),
    }


def figures(models: Sequence[ModelScores]) -> list[list[str]]:
    """Return one row for each measure: its name and its value for every model."""
    rows = [
        [say("evaluate.figures.loss"), *(_number(model.loss) for model in models)],
        [say("evaluate.figures.perplexity"), *(_number(model.perplexity) for model in models)],
    ]
    if any(model.scores for model in models):
        rows += [
            [name, *(_number(getattr(model.scores, field, None)) for model in models)]
            for field, name in measures().items()
        ]
    general = [model.general for model in models if model.general]
    if len(general) == len(models):
        rows.append([say("evaluate.figures.general_loss"), *(_number(scores.loss) for scores in general)])
        for language in general[0].right:
            shares = (f"{scores.right[language]:.0%}" for scores in general)
            rows.append([say("evaluate.figures.general_right", language=language), *shares])
    return rows


def _number(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, int | float) else "–"
