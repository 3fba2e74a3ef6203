"""Several runs on one page: where their recipes differ, their curves together, their evaluations side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weitune.evaluate.evaluation import ModelScores
from weitune.evaluate.figures import figures
from weitune.messages import say
from weitune.report.chart import Line, chart
from weitune.report.data_section import MISSING
from weitune.report.page import page, section, table
from weitune.report.run_record import RunRecord
from weitune.run.events import Step, Validation
from weitune.run.history import finite, smoothed

_PLACES = ("output",)


def compare(records: Sequence[RunRecord]) -> str:
    """Return the page about ``records``, in their order."""
    names = names_of(records)
    heads = [say("report.comparison.key"), *names]
    lead = say("report.comparison.runs", count=len(records), names=", ".join(names))
    return page(
        say("report.comparison.title"),
        lead,
        [
            section(say("report.comparison.differences"), table(heads, differences(records))),
            section(say("report.comparison.results"), table(["", *names], results(records), numbers=True)),
            section(say("report.run_report.curves"), f'<div class="charts">{_charts(records, names)}</div>\n'),
            section(say("report.comparison.evaluations"), _evaluations(records, names)),
        ],
    )


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: its folder's, or the whole path where two folders have the same name."""
    names = [record.name for record in records]
    return [name if names.count(name) == 1 else str(record.path) for name, record in zip(names, records, strict=True)]


def differences(records: Sequence[RunRecord]) -> list[list[str]]:
    """Return one row for each key of the recipe that is not the same in all runs."""
    values = [record.values() for record in records]
    keys = dict.fromkeys(key for each in values for key in each if key not in _PLACES)
    rows = {key: [each.get(key) for each in values] for key in keys}
    return [[key, *map(_shown, row)] for key, row in rows.items() if any(value != row[0] for value in row)]


def results(records: Sequence[RunRecord]) -> list[list[str]]:
    """Return the results of each run: one row for each figure, its name first."""
    columns = [_result(record) for record in records]
    return [[name, *(column[name] for column in columns)] for name in columns[0]]


def _result(record: RunRecord) -> dict[str, str]:
    loss, validation = record.series("loss"), record.series("loss", Validation)
    seconds = sum(value for _, value in record.series("step_seconds"))
    peak = max((value for _, value in record.series("memory_bytes")), default=0)
    best = record.best
    return {
        say("report.run_report.steps"): f"{len(loss):,}",
        say("report.comparison.step_seconds"): f"{seconds:,.0f}",
        say("report.run_report.training_loss"): f"{smoothed(loss)[-1][1]:.4f}" if loss else MISSING,
        say("report.run_report.last_validation_loss"): f"{validation[-1][1]:.4f}" if validation else MISSING,
        say("report.run_report.best_validation_loss"): f"{best[1]:.4f}" if best else MISSING,
        say("report.comparison.best_step"): f"{best[0]}" if best else MISSING,
        say("report.comparison.peak_memory"): f"{peak / 2**30:.2f}",
    }


def _charts(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    def lines(curves: Iterable[Sequence[tuple[float, float]]]) -> list[Line]:
        return [Line(name, points, colour=k) for k, (name, points) in enumerate(zip(names, curves, strict=True))]

    validation = lines(record.series("loss", Validation) for record in records)
    by_time = lines(map(_by_time, records))
    training = lines(smoothed(record.series("loss")) for record in records)
    learning_rate = lines(record.series("learning_rate") for record in records)
    accuracy = lines(record.figures("rewards/accuracies", Validation) for record in records)
    return (
        chart(say("report.comparison.validation_loss_chart"), validation)
        + chart(say("report.comparison.accuracies"), accuracy)
        + chart(say("report.comparison.validation_loss_over_time"), by_time, x_label=say("report.comparison.seconds"))
        + chart(say("report.comparison.training_loss_chart"), training)
        + chart(say("report.run_report.learning_rate"), learning_rate)
    )


def _by_time(record: RunRecord) -> list[tuple[float, float]]:
    """Return (seconds spent in steps so far, validation loss): evaluations themselves cost no time here."""
    spent, points = 0.0, []
    for event in record.events:
        if isinstance(event, Step):
            spent += finite(event.step_seconds) or 0.0
        elif isinstance(event, Validation) and (loss := finite(event.loss)) is not None:
            points.append((spent, loss))
    return points


def _evaluations(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    evaluated: list[tuple[str, ModelScores]] = [
        (f"{name}: {model.which}", model)
        for name, record in zip(names, records, strict=True)
        if record.evaluation is not None
        for model in record.evaluation.models
    ]
    if not evaluated:
        return ""
    return table(["", *(head for head, _ in evaluated)], figures([model for _, model in evaluated]), numbers=True)


def _shown(value: object) -> str:
    if value is None:
        return say("report.comparison.none")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
