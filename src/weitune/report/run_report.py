"""``report.html`` of a run: data, curves, results, memory, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weitune.evaluate.evaluation import Evaluation
from weitune.files.json_files import leaves
from weitune.files.publish import publish_text
from weitune.messages import say
from weitune.messages.quantities import duration_text, memory_text
from weitune.messages.translate import translated
from weitune.report.chart import Line, chart
from weitune.report.data_section import MISSING, data_tables, learned_rows, plain
from weitune.report.evaluation_section import evaluation_section
from weitune.report.page import code, folded, page, section, table, text, tiles
from weitune.report.preference_section import preference_section
from weitune.report.run_record import RunRecord
from weitune.run.events import SampleAnswer, Step, Validation
from weitune.run.history import finite, smoothed
from weitune.run.names import RECIPE, REPORT
from weitune.shell import shell_command

_SHOWN_SAMPLES = 12


def write_report(folder: Path) -> Path:
    """Write the report of the run in ``folder`` and return its path.

    Raises RunError if there is no run, OSError if the system refuses to write.
    """
    target = folder / REPORT
    publish_text(run_report(RunRecord.read(folder)), target)
    return target


def write_evaluation_report(folder: Path, name: str, base: str, evaluation: Evaluation) -> Path:
    """Write a page with an evaluation and nothing else into ``folder`` and return its path.

    Raises OSError if the system refuses to write.
    """
    target = folder / REPORT
    title = say("report.run_report.evaluation_of", name=name)
    publish_text(page(title, base, [evaluation_section(evaluation)]), target)
    return target


def run_report(record: RunRecord) -> str:
    """Return the report as one page."""
    recipe = record.recipe
    lead = f"{recipe.model} · {', '.join(recipe.data)}"
    return page(
        say("report.run_report.title", name=record.name),
        lead,
        [
            section(say("report.run_report.at_a_glance"), tiles(_facts(record))),
            section(say("report.run_report.before_and_after"), _answers(record.answers)),
            section(say("report.run_report.curves"), f'<div class="charts">{_charts(record)}</div>\n'),
            preference_section(record),
            section(say("report.run_report.samples"), _samples(record.of_kind(Validation))),
            evaluation_section(record.evaluation),
            section(say("report.run_report.data"), data_tables(record.data)),
            section(say("report.run_report.learned"), learned_rows(record.data)),
            section(say("report.run_report.memory"), _memory(record)),
            section(say("report.run_report.commands"), code(_commands(record))),
            section(say("report.run_report.repeat"), _repeat(record)),
        ],
    )


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    steps = record.of_kind(Step)
    planned = next((start.steps for start in record.turns("start")), None)
    done = say("report.run_report.steps_of", done=len(steps), steps="?" if planned is None else planned)
    facts = [(say("report.run_report.steps"), done)]
    if steps:
        loss = smoothed(record.series("loss"))
        seconds = sum(finite(event.step_seconds) or 0.0 for event in steps)
        speed = sum(event.tokens or 0 for event in steps) / seconds if seconds else None
        facts += [
            (say("report.run_report.training_loss"), f"{loss[-1][1]:.3f}" if loss else MISSING),
            (say("report.run_report.step_time"), duration_text(seconds)),
            (say("report.run_report.speed"), f"{speed:,.0f}" if speed is not None else MISSING),
        ]
    losses = record.series("loss", Validation)
    if losses:
        facts.append((say("report.run_report.first_validation_loss"), f"{losses[0][1]:.3f}"))
        facts.append((say("report.run_report.last_validation_loss"), f"{losses[-1][1]:.3f}"))
        if best := record.best:
            at_step = say("report.run_report.loss_at_step", loss=best[1], step=best[0])
            facts.append((say("report.run_report.best_validation_loss"), at_step))
        last = record.of_kind(Validation)[-1]
        name = say("report.run_report.perplexity_of_chosen" if last.figures else "report.run_report.last_perplexity")
        facts.append((name, plain(last.perplexity)))
    facts.append((say("report.run_report.state"), _state(record)))
    return facts


def _state(record: RunRecord) -> str:
    if ends := record.turns("end"):
        chosen = ends[-1].adapter_step
        if chosen in {None, ends[-1].step}:
            return say("report.run_report.finished")
        return say("report.run_report.finished_with_adapter", step=chosen)
    if stops := record.turns("stop"):
        return say("report.run_report.stopped", reason=translated(str(stops[-1].reason), "training"))
    return say("report.run_report.not_finished")


def _charts(record: RunRecord) -> str:
    loss = record.series("loss")
    lines = [
        Line(say("report.run_report.every_step"), loss, faint=True),
        Line(say("report.run_report.training_loss"), smoothed(loss)),
        Line(say("report.run_report.validation_loss"), record.series("loss", Validation), colour=1),
    ]
    drawn = [chart(say("report.run_report.loss"), lines)]
    curves = {
        "learning_rate": say("report.run_report.learning_rate"),
        "grad_norm": say("report.run_report.grad_norm"),
        "tokens_per_second": say("report.run_report.speed_chart"),
    }
    for colour, (key, title) in enumerate(curves.items(), 2):
        drawn.append(chart(title, [Line(title, record.series(key), colour=colour)]))
    return "".join(drawn)


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    heads = (say("report.run_report.question"), say("report.run_report.before"), say("report.run_report.after"))
    rows = [[answer.get(key, "") for key in ("question", "before", "after")] for answer in answers]
    return table(heads, rows, said=True)


def _samples(evaluations: Sequence[Validation]) -> str:
    """Return the answers to each prompt over the steps."""
    by_prompt: dict[str, list[tuple[object, SampleAnswer]]] = {}
    for event in evaluations:
        for sample in event.samples or ():
            by_prompt.setdefault(str(sample.prompt), []).append((event.step, sample))
    parts = []
    for prompt, answers in by_prompt.items():
        rows = [(say("report.run_report.step", step=step), _said(sample)) for step, sample in _spread(answers)]
        reference = answers[0][1].reference
        if reference is not None:
            rows.append((say("report.run_report.reference"), reference))
        parts.append(f"<p><b>{text(prompt)}</b></p>\n" + table((), rows, said=True))
    return "".join(parts)


def _said(sample: SampleAnswer) -> str:
    """Return an answer; an ellipsis marks one that was cut at its longest length."""
    return f"{sample.answer or ''}{'' if sample.stopped else ' …'}"


def _spread(items: list[Any]) -> list[Any]:
    if len(items) <= _SHOWN_SAMPLES:
        return items
    last = len(items) - 1
    return [items[round(k * last / (_SHOWN_SAMPLES - 1))] for k in range(_SHOWN_SAMPLES)]


def _memory(record: RunRecord) -> str:
    forecast = record.environment.get("forecast")
    peak = max((value for _, value in record.series("memory_bytes")), default=None)
    rows = [(name, memory_text(size, 2)) for name, size in (forecast or {}).items()]
    if forecast:
        rows.append((say("report.run_report.forecast_in_all"), memory_text(sum(forecast.values()), 2)))
    if peak:
        rows.append((say("report.run_report.measured_peak"), memory_text(peak, 2)))
    return table([say("report.run_report.part"), say("report.run_report.size")], rows, numbers=True)


def _commands(record: RunRecord) -> str:
    folder = record.path
    commands = (
        ("chat", folder),
        ("eval", folder),
        ("export", folder, "--format", "merged", "--output", folder / "merged"),
        ("serve", folder),
    )
    return "".join(f"{shell_command(*words)}\n" for words in commands)


def _repeat(record: RunRecord) -> str:
    environment = {
        k: v for k, v in record.environment.items() if k not in {"basis", "base place", "packages", "forecast"}
    }
    packages = record.environment.get("packages", {})
    basis = record.environment.get("basis", {})
    fingerprints = "".join(f"{name}: {value}\n" for name, value in leaves(basis))
    return (
        code(f"{shell_command('train', record.path / RECIPE, '--output', 'ANOTHER-FOLDER')}\n")
        + folded(say("report.run_report.recipe"), code(record.recipe_text, wrapped=True))
        + folded(say("report.run_report.machine"), table((), [*environment.items(), *packages.items()]))
        + folded(say("report.run_report.fingerprints"), code(fingerprints, wrapped=True))
    )
