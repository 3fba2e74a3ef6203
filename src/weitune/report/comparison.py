"""Several runs on one page: where their recipes differ, their curves together, their evaluations side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weitune.evaluate.evaluation import Evaluation
from weitune.evaluate.figures import measured
from weitune.messages import in_english, joined, say
from weitune.report.chart import Line, chart
from weitune.report.data_section import MISSING
from weitune.report.evaluation_section import evaluated_on, figures_table, model_name
from weitune.report.links import linked
from weitune.report.markup import text
from weitune.report.page import Content, page, section, table
from weitune.report.run_record import RunRecord
from weitune.report.trend import trend
from weitune.run.events import Step, Validation
from weitune.run.history import finite
from weitune.run.names import REPORT

_PLACES = ("output",)


@page
def compare(records: Sequence[RunRecord], folder: Path) -> Content:
    """Return the page about ``records``, in their order; its links lead from ``folder`` to their reports."""
    names = names_of(records)
    heads = [say("report.comparison.key"), *names]
    lead = say("report.comparison.runs", count=len(records), names=", ".join(names))
    return Content(
        say("report.comparison.title"),
        lead,
        [
            _summary(records, names, folder),
            section(say("report.comparison.results"), table(["", *names], results(records), numbers=True)),
            section(say("report.comparison.differences"), table(heads, differences(records))),
            section(
                say("report.run_report.curves"),
                f"<p>{text(_equal(records, names))}</p>\n" if _equal(records, names) else "",
                f'<div class="charts">{_charts(records, names)}</div>\n',
            ),
            section(say("report.comparison.evaluations"), _evaluations(records, names)),
        ],
    )


def _summary(records: Sequence[RunRecord], names: Sequence[str], folder: Path) -> str:
    """Return which run is best, and links to the reports there are."""
    losses = {name: record.best[1] for name, record in zip(names, records, strict=True) if record.best is not None}
    best = min(losses, key=lambda name: losses[name], default=None)
    said = say("report.comparison.no_best" if _comparable(records) else "report.comparison.of_other_kinds")
    if _comparable(records) and best is not None and len(losses) == len(records) and len(set(losses.values())) > 1:
        said = say("report.comparison.best", name=best, loss=losses[best])
    reports = [(name, record.path / REPORT) for name, record in zip(names, records, strict=True)]
    links = linked([(name, report) for name, report in reports if report.is_file()], folder)
    said = f"<p>{text(said)}</p>\n"
    return said + ("<p>" + text(say("report.comparison.reports")) + f" {links}</p>\n" if links else "")


def _comparable(records: Sequence[RunRecord]) -> bool:
    """Return whether the validation losses are those of the same rows, by the same method."""

    def kind(record: RunRecord) -> object:
        return record.recipe.preference, _held_out(record)

    return all(kind(record) == kind(records[0]) for record in records)


def _held_out(record: RunRecord) -> object:
    """Return what tells the held-out rows of runs apart: their fingerprint, or how they were chosen."""
    return _basis(record).get("validation") or record.recipe.validation


def _basis(record: RunRecord) -> Mapping[str, Any]:
    basis = record.environment.get("basis")
    return basis if isinstance(basis, dict) else {}


def _equal(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Return a sentence if runs have the same curves, of which one hides the other."""
    curves = [(record.series("loss"), record.series("loss", Validation)) for record in records]
    groups = [[name for name, each in zip(names, curves, strict=True) if each == curve] for curve in curves]
    alike = dict.fromkeys(", ".join(group) for group in groups if len(group) > 1)
    return say("report.comparison.equal", names="; ".join(alike)) if alike else ""


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
        say("report.run_report.training_loss"): f"{trend(loss)[-1][1]:.4f}" if loss else MISSING,
        say("report.run_report.last_validation_loss"): f"{validation[-1][1]:.4f}" if validation else MISSING,
        say("report.run_report.best_validation_loss"): f"{best[1]:.4f}" if best else MISSING,
        say("report.comparison.best_step"): f"{best[0]}" if best else MISSING,
        say("report.comparison.peak_memory"): f"{peak / 2**30:.2f}",
    }


def _charts(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    def drawn(title: str, curves: Iterable[Sequence[tuple[float, float]]], x_label: str | None = None) -> str:
        """Return a chart with a line for each run; through the dashes of one, an equal one shows."""
        named = zip(names, curves, strict=True)
        lines = [Line(name, points, colour=k, dash=k and 1 + (k - 1) % 3) for k, (name, points) in enumerate(named)]
        return chart(title, lines, x_label=x_label, legend=True)

    seconds = say("report.comparison.seconds")
    return (
        drawn(say("report.comparison.validation_loss_chart"), (each.series("loss", Validation) for each in records))
        + drawn(
            say("report.comparison.accuracies"), (each.figures("rewards/accuracies", Validation) for each in records)
        )
        + drawn(say("report.comparison.validation_loss_over_time"), map(_by_time, records), seconds)
        + drawn(say("report.comparison.training_loss_chart"), (trend(each.series("loss")) for each in records))
        + drawn(say("report.run_report.learning_rate"), (each.series("learning_rate") for each in records))
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
    """Return a table of the evaluations of each set of rows: figures of other rows are not to be compared."""
    together: dict[str, list[tuple[str, Evaluation]]] = {}
    for name, record in zip(names, records, strict=True):
        if (found := record.evaluation) is not None:
            together.setdefault(_rows_of(record, found), []).append((name, found))
    return "".join(f"<p>{text(evaluated_on(some[0][1]))}</p>\n{_table(some)}" for some in together.values())


def _rows_of(record: RunRecord, evaluation: Evaluation) -> str:
    """Return a text that is the same for evaluations whose figures can be compared."""
    fraction = record.recipe.validation_fraction
    own = "" if fraction is None else in_english(say("evaluate.evaluation_set.held_out", fraction=fraction))
    held = _held_out(record) if in_english(evaluation.rows.name) == own else None
    tokenizer = _basis(record).get("tokenizer")  # a loss is that of a token
    return repr((evaluation.rows, evaluation.max_new_tokens, evaluation.schema, tokenizer, held))


def _table(evaluations: Sequence[tuple[str, Evaluation]]) -> str:
    evaluated = [(name, model) for name, evaluation in evaluations for model in evaluation.models]
    bases = [model for _, model in evaluated if model.which == "base"]
    if len(bases) > 1 and all(base == bases[0] for base in bases):  # it stands there once
        evaluated = [("", bases[0]), *((name, model) for name, model in evaluated if model.which != "base")]
    heads = [joined(": ", filter(None, [name, model_name(model.which)])) for name, model in evaluated]
    return figures_table(heads, measured([model for _, model in evaluated]))


def _shown(value: object) -> str:
    if value is None:
        return say("report.comparison.none")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
