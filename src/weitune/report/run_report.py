"""``report.html`` of a run: a verdict, answers, curves, data, memory, and how to repeat it."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from weitune.errors import RunError
from weitune.evaluate.evaluation import Evaluation
from weitune.files.json_files import leaves
from weitune.files.publish import publish_text
from weitune.messages import say
from weitune.messages.quantities import duration_text, memory_text
from weitune.messages.translate import translated
from weitune.report.before_after import answers_section, are_of_validations, evaluated_answers, said
from weitune.report.chart import Line, chart
from weitune.report.data_section import MISSING, data_tables, learned_rows
from weitune.report.evaluation_section import evaluation_section
from weitune.report.links import comparisons, linked, siblings
from weitune.report.markup import lang, text
from weitune.report.next_steps import another_run, later_commands
from weitune.report.page import COPY, Content, Fact, code, commands, folded, page, section, table, tiles
from weitune.report.preference_section import preference_section
from weitune.report.run_record import RunRecord
from weitune.report.trend import trend
from weitune.report.verdict import evaluation_verdict, verdict
from weitune.run.events import SampleAnswer, Step, Validation
from weitune.run.history import finite
from weitune.run.names import REPORT
from weitune.shell import shell_command

_SHOWN_SAMPLES, _SHOWN_PROMPTS, _SHOWN_SIBLINGS = 12, 3, 8
_SHORT = 0.6
"""Of the usual number of tokens; a step with fewer is short."""


def write_report(folder: Path) -> Path:
    """Write the report of the run in ``folder`` and return its path.

    Raises RunError if there is no run, if a crash or another program left files in it that cannot be read, or if the
    system refuses to write; RecipeError if its recipe is broken.
    """
    target = folder / REPORT
    try:
        publish_text(run_report(RunRecord.read(folder)), target)
    except OSError as error:
        raise RunError("report.run_report.not_written", run=folder, strerror=error.strerror or error) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError("report.run_report.cannot_be_read", run=folder, error=error) from None
    return target


def write_evaluation_report(folder: Path, name: str, base: str, evaluation: Evaluation) -> Path:
    """Write a page with an evaluation and nothing else into ``folder`` and return its path.

    Raises OSError if the system refuses to write.
    """
    target = folder / REPORT
    publish_text(_evaluation_report(name, base, evaluation), target)
    return target


@page
def _evaluation_report(name: str, base: str, evaluation: Evaluation) -> Content:
    title = say("report.run_report.evaluation_of", name=name)
    parts = [evaluation_verdict(evaluation), evaluated_answers(evaluation), evaluation_section(evaluation)]
    return Content(title, base, parts)


@page
def run_report(record: RunRecord) -> Content:
    """Return the report as one page."""
    recipe = record.recipe
    lead = f"{recipe.model} · {', '.join(recipe.data)}"
    return Content(
        say("report.run_report.title", name=record.name),
        lead,
        [
            verdict(record),
            tiles(_facts(record)),
            answers_section(record),
            evaluation_section(record.evaluation),
            section(say("report.run_report.curves"), f'<div class="charts">{_charts(record)}</div>\n'),
            preference_section(record),
            section(say("report.run_report.samples"), _samples(record)),
            section(say("report.run_report.data"), data_tables(record.data)),
            section(say("report.run_report.learned"), learned_rows(record.data)),
            section(say("report.run_report.memory"), _memory(record)),
            section(say("report.run_report.commands"), commands(later_commands(record)), _siblings(record)),
            section(say("report.run_report.repeat"), _repeat(record)),
        ],
        scripts=[COPY],
    )


def _facts(record: RunRecord) -> list[Fact]:
    steps = record.of_kind(Step)
    planned = record.planned
    done = say("report.run_report.steps_of", done=len(steps), steps="?" if planned is None else planned)
    facts = [_state(record), Fact(say("report.run_report.steps"), done)]
    if steps:
        seconds = sum(finite(event.step_seconds) or 0.0 for event in steps)
        speed = sum(event.tokens or 0 for event in steps) / seconds if seconds else None
        facts += [
            Fact(say("report.run_report.step_time"), duration_text(seconds)),
            Fact(say("report.run_report.speed"), f"{speed:,.0f}" if speed is not None else MISSING),
        ]
    losses = record.series("loss", Validation)
    if losses:
        facts.append(Fact(say("report.run_report.first_validation_loss"), f"{losses[0][1]:.3f}"))
        if best := record.best:
            at_step = say("report.run_report.at_step", step=best[0])
            facts.append(Fact(say("report.run_report.best_validation_loss"), f"{best[1]:.3f}", at_step))
        facts.append(Fact(say("report.run_report.last_validation_loss"), f"{losses[-1][1]:.3f}"))
        last = record.of_kind(Validation)[-1]
        name = say("report.run_report.perplexity_of_chosen" if last.figures else "report.run_report.last_perplexity")
        facts.append(Fact(name, MISSING if last.perplexity is None else f"{last.perplexity:,.4g}"))
    elif loss := trend(record.series("loss")):
        facts.append(Fact(say("report.run_report.first_training_loss"), f"{loss[0][1]:.3f}"))
        facts.append(Fact(say("report.run_report.last_training_loss"), f"{loss[-1][1]:.3f}"))
    return facts


def _state(record: RunRecord) -> Fact:
    name = say("report.run_report.state")
    ends = record.turns("end")
    if record.finished:
        chosen = ends[-1].adapter_step
        other = chosen not in {None, ends[-1].step}
        note = say("report.run_report.adapter_of", step=chosen) if other else ""
        return Fact(name, say("report.run_report.finished"), note, "good")
    if record.stopped_by:
        return Fact(
            name, say("report.run_report.stopped", reason=translated(record.stopped_by, "training")), state="bad"
        )
    if record.not_finite:
        return Fact(name, say("report.run_report.not_finite"), state="bad")
    return Fact(name, say("report.run_report.not_finished"), state="open")


def _charts(record: RunRecord) -> str:
    loss = record.series("loss")
    lines = [
        Line(say("report.run_report.every_step"), loss, faint=True),
        Line(say("report.run_report.training_loss"), trend(loss)),
        Line(say("report.run_report.validation_loss"), record.series("loss", Validation), colour=1),
    ]
    drawn = [chart(say("report.run_report.loss"), lines, note=say("report.run_report.faint") if loss else "")]
    curves = {
        "learning_rate": (say("report.run_report.learning_rate"), ""),
        "grad_norm": (say("report.run_report.grad_norm"), ""),
        "tokens_per_second": (say("report.run_report.speed_chart"), _short_step(record)),
    }
    for colour, (key, (title, note)) in enumerate(curves.items(), 2):
        drawn.append(chart(title, [Line(title, record.series(key), colour=colour)], note=note))
    return "".join(drawn)


def _short_step(record: RunRecord) -> str:
    """Return a sentence if the last step had fewer tokens than others: its speed then looks like a fault."""
    tokens = [event.tokens for event in record.of_kind(Step) if event.tokens]
    if len(tokens) < 2 or tokens[-1] > _SHORT * median(tokens):
        return ""
    return say("report.run_report.short_step", tokens=tokens[-1], usual=round(median(tokens)))


def _samples(record: RunRecord) -> str:
    """Return the answers to each prompt over the steps, but for those that stand above."""
    sampled, above = [event for event in record.of_kind(Validation) if event.samples], are_of_validations(record)
    by_prompt: dict[str, list[tuple[object, SampleAnswer]]] = {}
    for event in sampled[1:-1] if above else sampled:
        for sample in event.samples or ():
            by_prompt.setdefault(str(sample.prompt), []).append((event.step, sample))
    parts = []
    for prompt, answers in by_prompt.items():
        rows = [(say("report.run_report.step", step=step), said(sample)) for step, sample in _spread(answers)]
        reference = answers[0][1].reference
        if reference is not None and not above:
            rows.append((say("report.run_report.reference"), reference))
        parts.append(f"<h3{lang(prompt)}>{text(prompt)}</h3>\n" + table((), rows, said=True))
    shown, rest = "".join(parts[:_SHOWN_PROMPTS]), "".join(parts[_SHOWN_PROMPTS:])
    return shown + folded(say("report.run_report.more_samples", count=len(parts) - _SHOWN_PROMPTS), rest)


def _spread(items: list[Any]) -> list[Any]:
    if len(items) <= _SHOWN_SAMPLES:
        return items
    last = len(items) - 1
    return [items[round(k * last / (_SHOWN_SAMPLES - 1))] for k in range(_SHOWN_SAMPLES)]


def _memory(record: RunRecord) -> str:
    forecast = record.environment.get("forecast")
    peak = max((value for _, value in record.series("memory_bytes")), default=None)
    rows = [(translated(name, "forecast"), memory_text(size, 2)) for name, size in (forecast or {}).items()]
    if forecast:
        rows.append((say("report.run_report.forecast_in_all"), memory_text(sum(forecast.values()), 2)))
    if peak:
        rows.append((say("report.run_report.measured_peak"), memory_text(peak, 2)))
    return table([say("report.run_report.part"), say("report.run_report.size")], rows, numbers=True)


def _siblings(record: RunRecord) -> str:
    """Return links to comparisons of this run and to reports of runs beside it, and the command that compares them."""
    run, parts = record.path.absolute(), []
    if pages := comparisons(run):
        links = linked([(page.name, page) for page in pages], run)
        parts.append("<p>" + text(say("report.run_report.comparisons")) + f" {links}</p>\n")
    if others := siblings(run)[:_SHOWN_SIBLINGS]:
        links = linked([(name, run.parent / name / REPORT) for name in others], run)
        parent = record.path.parent if record.path.name not in {"", ".."} else run.parent
        folders = (record.path, *(parent / name for name in others))
        compare = shell_command("compare", *folders, "--output", parent / "compare.html")
        parts += ["<p>" + text(say("report.run_report.siblings")) + f" {links}</p>\n", commands([compare])]
    return "".join(parts)


def _repeat(record: RunRecord) -> str:
    environment = {
        k: v for k, v in record.environment.items() if k not in {"basis", "base place", "packages", "forecast"}
    }
    packages = record.environment.get("packages", {})
    basis = record.environment.get("basis", {})
    fingerprints = "".join(f"{name}: {value}\n" for name, value in leaves(basis))
    return (
        commands([another_run(record)])
        + folded(say("report.run_report.recipe"), code(record.recipe_text, wrapped=True))
        + folded(say("report.run_report.machine"), table((), [*environment.items(), *packages.items()]))
        + folded(say("report.run_report.fingerprints"), code(fingerprints, wrapped=True))
    )
