"""``tune.html``: every trial of a search on one page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from weitune.messages import joined, say
from weitune.recipe.schema import Recipe
from weitune.report.chart import Line, chart
from weitune.report.page import Content, code, page, section, table
from weitune.tune.search import Candidate
from weitune.tune.trials import Outcome


@page
def tune_page(
    recipe: Recipe,
    best: Candidate,
    losses: Mapping[Candidate, float],
    outcomes: Sequence[Outcome],
    *,
    held_out: bool = False,
) -> Content:
    """Return the page of a search that found ``best``; ``losses`` are those of the last rung.

    ``held_out`` says that it is the search that holds rows out, not the recipe.
    """
    told = reasons(recipe, best, losses, outcomes, held_out=held_out)
    rungs = sorted({outcome.trial.rung for outcome in outcomes})
    return Content(
        say("tune.page.title", model=recipe.model),
        joined(" ", told[:2]),
        [
            section(say("tune.page.by_rate"), f'<div class="charts">{_by_rate(outcomes, rungs)}</div>\n'),
            section(say("tune.page.trials"), _trials(outcomes, best)),
            section(say("tune.page.curves"), f'<div class="charts">{_curves(outcomes, rungs)}</div>\n'),
            section(say("tune.page.reasons"), code(joined("\n", told), wrapped=True)),
        ],
    )


def reasons(
    recipe: Recipe,
    best: Candidate,
    losses: Mapping[Candidate, float],
    outcomes: Sequence[Outcome],
    *,
    held_out: bool = False,
) -> list[str]:
    """Return lines that say what was tried and why these settings were taken."""
    trial = max((each.trial for each in outcomes if each.trial.candidate == best), key=lambda trial: trial.rung)
    lines = [
        say("tune.page.reason_found", trials=len(outcomes), steps=sum(outcome.trial.steps for outcome in outcomes)),
        say("tune.page.reason_best", loss=losses[best], trial=trial, candidate=best),
    ]
    for candidate, loss in losses.items():
        if candidate != best:
            lines.append(say("tune.page.reason_other", loss=loss, candidate=candidate))
    if held_out:
        lines.append(say("tune.page.reason_held_out", part=recipe.validation_fraction))
    if recipe.keep is not None:
        lines.append(say("tune.page.reason_keep"))
    return [*lines, say("tune.page.reason_patience")]


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
