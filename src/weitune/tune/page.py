"""``tune.html``: every trial of a search on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weitune.messages import say
from weitune.recipe.schema import Recipe
from weitune.report.chart import Line, chart
from weitune.report.page import code, page, section, table
from weitune.tune.search import Candidate
from weitune.tune.trials import Outcome


def tune_page(recipe: Recipe, best: Candidate, outcomes: Sequence[Outcome], reasons: Sequence[str]) -> str:
    """Return the page of a search that found ``best``."""
    rungs = sorted({outcome.trial.rung for outcome in outcomes})
    return page(
        say("tune.page.title", model=recipe.model),
        " ".join(reasons[:2]),
        [
            section(say("tune.page.by_rate"), f'<div class="charts">{_by_rate(outcomes, rungs)}</div>\n'),
            section(say("tune.page.trials"), _trials(outcomes, best)),
            section(say("tune.page.curves"), f'<div class="charts">{_curves(outcomes, rungs)}</div>\n'),
            section(say("tune.page.reasons"), code("\n".join(reasons), wrapped=True)),
        ],
    )


def _by_rate(outcomes: Sequence[Outcome], rungs: Sequence[int]) -> str:
    """Return the held-out loss over the logarithm of the learning rate, a line for each rung."""
    lines = []
    for rung in rungs:
        points = sorted(
            (math.log10(outcome.trial.candidate.learning_rate), outcome.loss)
            for outcome in outcomes
            if outcome.trial.rung == rung and math.isfinite(outcome.loss)
        )
        lines.append(Line(say("tune.page.rung", rung=rung), points, colour=rung))
    return chart(say("tune.page.held_out_loss"), lines, x_label=say("tune.page.log_rate"))


def _curves(outcomes: Sequence[Outcome], rungs: Sequence[int]) -> str:
    figures = []
    for rung in rungs:
        lines = [
            Line(
                f"{outcome.trial.candidate.learning_rate:g}",
                [(float(step), loss) for step, loss in enumerate(outcome.losses, 1)],
                colour=colour,
            )
            for colour, outcome in enumerate(each for each in outcomes if each.trial.rung == rung)
        ]
        figures.append(chart(say("tune.page.training_loss", rung=rung), lines))
    return "".join(figures)


def _trials(outcomes: Sequence[Outcome], best: Candidate) -> str:
    heads = [
        say("tune.page.rate"),
        say("tune.page.rate_of_trial"),
        say("tune.page.batch_size"),
        say("tune.page.rank"),
        say("tune.page.epochs"),
        say("tune.page.rows"),
        say("tune.page.steps"),
        say("tune.page.loss"),
        say("tune.page.seconds"),
        say("tune.page.taken"),
    ]
    rows = [
        (
            f"{each.trial.candidate.learning_rate:g}",
            f"{each.trial.rate:g}",
            each.trial.candidate.batch_size,
            each.trial.candidate.r or "–",
            each.trial.candidate.epochs,
            each.trial.rows,
            each.trial.steps,
            f"{each.loss:.4f}",
            f"{each.seconds:.0f}",
            "✓" if each.trial.candidate == best else "",
        )
        for each in outcomes
    ]
    return table(heads, rows, numbers=True)
