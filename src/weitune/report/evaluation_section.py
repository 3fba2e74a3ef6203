"""The part of a report that an evaluation gives: figures of each model, quality over steps, answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

from weitune.evaluate.evaluation import Evaluation, ModelScores, WinRate
from weitune.evaluate.figures import figures, measures
from weitune.messages import say
from weitune.report.chart import Line, chart
from weitune.report.page import folded, section, table

_SHOWN_ANSWERS = 20
_DRAWN = ("chrf", "rouge_l")


def evaluation_section(evaluation: Evaluation | None) -> str:
    """Return the section, or nothing if there was no evaluation."""
    if evaluation is None or not evaluation.models:
        return ""
    models, rows = evaluation.models, evaluation.rows
    names = [model.which for model in models]
    asked = say("report.evaluation_section.question")
    heads = [asked, say("report.evaluation_section.data"), *names]
    answers = [
        [answer.prompt, answer.reference, *(answer.said.get(name, "") for name in names)]
        for answer in evaluation.answers
    ]
    general = [[answer.prompt, *(answer.said.get(name, "") for name in names)] for answer in evaluation.general]
    evaluated_on = say(
        "report.evaluation_section.rows", name=rows.name, examples=rows.examples, questions=rows.questions
    )
    every = say("report.evaluation_section.all_answers", count=len(answers))
    return section(
        say("report.evaluation_section.title"),
        table(["", *names], figures(models), numbers=True),
        f'<div class="charts">{_over_steps(models)}</div>\n',
        _win_rate(evaluation.win_rate),
        table((), [(evaluated_on,)]),
        table(heads, answers[:_SHOWN_ANSWERS], said=True),
        folded(every, table(heads, answers, said=True)) if len(answers) > _SHOWN_ANSWERS else "",
        folded(say("report.evaluation_section.general"), table([asked, *names], general, said=True)),
    )


def _over_steps(models: Sequence[ModelScores]) -> str:
    """Return curves over the checkpoints, if several were evaluated; the base stands at step 0."""
    stepped = [(model.step, model) for model in models if model.step is not None]
    if len(stepped) < 2:
        return ""
    points = [*((0, model) for model in models if model.which == "base"), *stepped]
    title = say("report.evaluation_section.loss_by_checkpoint")
    drawn = [chart(title, [Line("loss", [(float(step), model.loss) for step, model in points])])]
    for colour, key in enumerate(_DRAWN, 1):
        values = [(float(step), getattr(model.scores, key, None)) for step, model in points]
        line = [(step, value) for step, value in values if value is not None]
        title = say("report.evaluation_section.by_checkpoint", measure=measures()[key])
        drawn.append(chart(title, [Line(key, line, colour=colour)]))
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
    judge = say("report.evaluation_section.against_base", which=win.which, judge=win.judge)
    interval = say("report.evaluation_section.range", low=win.low, high=win.high)
    return table(heads, [(judge, win.pairs, win.wins, win.losses, f"{win.rate:.0%}", interval)], numbers=True)
