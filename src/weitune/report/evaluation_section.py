"""The part of a report that an evaluation gives: figures of each model, and quality over steps."""

from __future__ import annotations

from collections.abc import Sequence

from weitune.evaluate.evaluation import Evaluation, ModelScores, WinRate
from weitune.evaluate.figures import Figure, measured, measures
from weitune.messages import joined, say
from weitune.messages.translate import translated
from weitune.report.chart import Line, chart
from weitune.report.markup import text
from weitune.report.page import Cell, section, table

_DRAWN = ("chrf", "rouge_l")


def evaluation_section(evaluation: Evaluation | None) -> str:
    """Return the section, or nothing if there was no evaluation."""
    if evaluation is None or not evaluation.models:
        return ""
    models = evaluation.models
    curves, legend = _over_steps(models), say("report.evaluation_section.legend")
    if evaluation.schema is not None:
        legend = joined(" ", [say("report.evaluation_section.kept_to_schema"), legend])
    return section(
        say("report.evaluation_section.title"),
        f"<p>{text(evaluated_on(evaluation))} {text(legend)}</p>\n",
        figures_table([model_name(model.which) for model in models], measured(models)),
        _win_rate(evaluation.win_rate),
        f'<div class="charts">{curves}</div>\n' if curves else "",
    )


def evaluated_on(evaluation: Evaluation) -> str:
    """Return a sentence about the rows of an evaluation."""
    rows = evaluation.rows
    name = translated(rows.name, "evaluate")
    return say("report.evaluation_section.rows", name=name, examples=rows.examples, questions=rows.questions)


def model_name(which: str) -> str:
    """Return what an evaluation calls one of its models, in the user's language."""
    if which.startswith("step "):
        return say("report.run_report.step", step=which.removeprefix("step "))
    names = {
        "base": say("report.evaluation_section.base"),
        "last": say("report.evaluation_section.last"),
        "best": say("report.evaluation_section.best"),
    }
    return names.get(which, which)


def figures_table(names: Sequence[str], found: Sequence[Figure]) -> str:
    """Return measures of the models called ``names``, explained, with the best value of each marked."""
    directions = {
        "higher": say("report.evaluation_section.higher"),
        "lower": say("report.evaluation_section.lower"),
        "": say("report.evaluation_section.neither"),
    }
    rows = [
        [Cell(figure.name, joined(" ", [directions[figure.better], figure.about])), *_cells(figure)] for figure in found
    ]
    return table([say("report.evaluation_section.measure"), *names], rows, numbers=True, measures=True)


def _cells(figure: Figure) -> list[Cell]:
    fallen = figure.fallen or [False] * len(figure.shown)
    return [
        Cell(shown, say("report.evaluation_section.fallen"), "bad")
        if fell
        else Cell(shown, kind="best" if figure.best is not None and value == figure.best else "")
        for shown, value, fell in zip(figure.shown, figure.values, fallen, strict=True)
    ]


def _over_steps(models: Sequence[ModelScores]) -> str:
    """Return curves over the checkpoints, if several were evaluated; the base stands at step 0."""
    stepped = sorted({model.step: model for model in models if model.step is not None}.items())
    if len(stepped) < 2:
        return ""
    points = [*((0, model) for model in models if model.which == "base"), *stepped]
    losses = [(float(step), model.loss) for step, model in points if model.loss is not None]
    drawn = [chart(say("report.evaluation_section.loss_by_checkpoint"), [Line(say("evaluate.figures.loss"), losses)])]
    for colour, key in enumerate(_DRAWN, 1):
        values = [(float(step), getattr(model.scores, key, None)) for step, model in points]
        line = [(step, value) for step, value in values if value is not None]
        title = say("report.evaluation_section.by_checkpoint", measure=measures()[key])
        drawn.append(chart(title, [Line(measures()[key], line, colour=colour)]))
    return "".join(drawn)


def _win_rate(win: WinRate | None) -> str:
    if win is None:
        return ""
    heads = (
        say("report.evaluation_section.judge"),
        say("report.evaluation_section.pairs"),
        say("report.evaluation_section.wins"),
        say("report.evaluation_section.losses"),
        say("report.evaluation_section.win_rate"),
        say("report.evaluation_section.interval"),
    )
    judge = say("report.evaluation_section.against_base", which=model_name(win.which), judge=win.judge)
    interval = say("report.evaluation_section.range", low=win.low, high=win.high)
    return table(heads, [(judge, win.pairs, win.wins, win.losses, f"{win.rate:.0%}", interval)], numbers=True)
