"""``report.html`` of a run: what was trained on what, how it went, what came of it, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weitune.evaluate.evaluation import Evaluation
from weitune.files.publish import publish_text
from weitune.messages.quantities import duration_text, memory_text
from weitune.report.chart import Line, chart
from weitune.report.evaluation_section import evaluation_section
from weitune.report.page import code, folded, page, section, table, text, tiles
from weitune.report.run_record import RunRecord
from weitune.run.data_record import DataRecord
from weitune.run.history import smoothed
from weitune.run.names import RECIPE, REPORT
from weitune.shell import shell_command

_SHOWN_SAMPLES = 12


def write_report(folder: Path) -> Path:
    """Write the report of the run in ``folder`` and return its path.

    Raises RunError if there is no run, OSError if the system refuses to write.
    """
    target = folder / REPORT
    publish_text(run_report(RunRecord.of(folder)), target)
    return target


def write_evaluation_report(folder: Path, name: str, base: str, evaluation: Evaluation) -> Path:
    """Write a page with an evaluation and nothing else into ``folder`` and return its path.

    Raises OSError if the system refuses to write.
    """
    target = folder / REPORT
    publish_text(page(f"Evaluation of {name}", base, [evaluation_section(evaluation)]), target)
    return target


def run_report(record: RunRecord) -> str:
    """Return the report as one page."""
    recipe = record.recipe
    lead = f"{recipe.model} · {', '.join(recipe.data)}"
    return page(f"Run {record.name}", lead, [
        section("At a glance", tiles(_facts(record))),
        section("The same questions before and after", _answers(record.answers)),
        section("Curves", f'<div class="charts">{_charts(record)}</div>\n'),
        section("Answers while it trained", _samples(record.of_kind("validation"))),
        evaluation_section(record.evaluation),
        section("Data", _data(record.data)),
        section("What is learned", _preview(record.data)),
        section("Memory: forecast and truth", _memory(record)),
        section("What can be done with it", code(_commands(record))),
        section("To repeat it", _repeat(record)),
    ])  # fmt: skip


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    steps, told = record.of_kind("step"), record.of_kind("validation")
    start = next(iter(record.of_kind("start")), {})
    facts = [("steps", f"{len(steps):,} of {start.get('steps', '?')}")]
    if steps:
        loss = smoothed(record.series("loss"))
        seconds = sum(event.get("step_seconds", 0.0) for event in steps)
        facts += [
            ("training loss, smoothed", f"{loss[-1][1]:.3f}" if loss else "–"),
            ("time in steps", duration_text(seconds)),
            ("tokens a second", f"{sum(e.get('tokens', 0) for e in steps) / seconds:,.0f}" if seconds else "–"),
        ]
    losses = record.series("loss", "validation")
    if losses:
        facts += [("validation loss, before", f"{losses[0][1]:.3f}"), ("validation loss, last", f"{losses[-1][1]:.3f}")]
        if best := record.best:
            facts.append(("validation loss, best", f"{best[1]:.3f} at step {best[0]}"))
        facts.append(("perplexity, last", _plain(told[-1].get("perplexity"))))
    end = next(iter(reversed(record.of_kind("end"))), None)
    facts.append(("state", _state(record, end)))
    return facts


def _state(record: RunRecord, end: Mapping[str, Any] | None) -> str:
    if end is not None:
        chosen = end.get("adapter_step", end.get("step"))
        return "finished" if chosen == end.get("step") else f"finished; adapter of step {chosen}"
    stop = next(iter(reversed(record.of_kind("stop"))), None)
    return f"stopped by {stop.get('reason')}" if stop else "not finished"


def _charts(record: RunRecord) -> str:
    loss = record.series("loss")
    drawn = [
        chart("Loss", [
            Line("every step", loss, faint=True), Line("training, smoothed", smoothed(loss)),
            Line("validation", record.series("loss", "validation"), colour=1),
        ]),
        chart("Learning rate", [Line("learning rate", record.series("learning_rate"), colour=2)]),
        chart("Gradient norm before clipping", [Line("gradient norm", record.series("grad_norm"), colour=3)]),
        chart("Speed, tokens a second", [Line("tokens a second", record.series("tokens_per_second"), colour=4)]),
    ]  # fmt: skip
    return "".join(drawn)


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    """Return the questions that a demo asked the base model and the tuned one."""
    rows = [[answer.get(key, "") for key in ("question", "before", "after")] for answer in answers]
    return table(["question", "before", "after"], rows, said=True)


def _samples(told: Sequence[Mapping[str, Any]]) -> str:
    """Return the answers to each prompt over the steps."""
    by_prompt: dict[str, list[tuple[object, Mapping[str, Any]]]] = {}
    for event in told:
        for sample in event.get("samples") or []:
            by_prompt.setdefault(str(sample.get("prompt")), []).append((event.get("step"), sample))
    parts = []
    for prompt, answers in by_prompt.items():
        reference = answers[0][1].get("reference")
        rows = [(f"step {step}", sample.get("answer", "") + ("" if sample.get("stopped") else " …"))
                for step, sample in _spread(answers)]  # fmt: skip
        if reference is not None:
            rows.append(("data", reference))
        parts.append(f"<p><b>{text(prompt)}</b></p>\n" + table((), rows, said=True))
    return "".join(parts)


def _spread(items: list[Any]) -> list[Any]:
    """Return at most so many items, evenly spaced, the first and the last among them."""
    if len(items) <= _SHOWN_SAMPLES:
        return items
    last = len(items) - 1
    return [items[round(k * last / (_SHOWN_SAMPLES - 1))] for k in range(_SHOWN_SAMPLES)]


def _data(data: DataRecord | None) -> str:
    if data is None:
        return ""
    rows, examples, lengths = data.report.rows, data.report.examples, data.report.lengths
    facts: list[tuple[str, object]] = [
        ("rows read", _plain(rows.read)), ("rows trained", _plain(rows.trained)),
        *((f"set aside: {reason}", _plain(count)) for reason, count in rows.set_aside.items()),
        ("examples", _plain(examples.kept)), ("cut", _plain(examples.cut)),
        ("tokens", _plain(lengths.all)), ("learned tokens", _plain(lengths.supervised)),
        ("exact copies of a row", _plain(data.report.findings.exact_duplicates)),
    ]  # fmt: skip
    if data.validation is not None:
        facts.append(("examples for validation", _plain(data.validation.examples)))
    sources = [(source.name, _plain(source.rows), source.format) for source in data.report.sources]
    spread = lengths.per_example
    per_example = table(["tokens of an example", *spread], [["", *map(_plain, spread.values())]], numbers=True)
    return table(["file", "rows", "format"], sources) + table((), facts) + (per_example if spread else "")


def _preview(data: DataRecord | None) -> str:
    blocks = []
    for example in data.preview if data else ():
        parts = "".join(_part(content, kind) for content, kind in example.parts)
        blocks.append(f'<p><small>{text(example.place)}</small></p><pre class="text">{parts}</pre>\n')
    lead = "<p><mark>Marked text</mark> is learned; <span class='control'>grey</span> only frames the turns.</p>\n"
    return lead + "".join(blocks) if blocks else ""


def _part(content: str, kind: str) -> str:
    if kind == "learned":
        return f"<mark>{text(content)}</mark>"
    return f'<span class="control">{text(content)}</span>' if kind == "control" else text(content)


def _memory(record: RunRecord) -> str:
    forecast = record.environment.get("forecast")
    peak = max((value for _, value in record.series("memory_bytes")), default=None)
    rows = [(name, memory_text(size, digits=2)) for name, size in (forecast or {}).items()]
    if forecast:
        rows.append(("forecast, all", memory_text(sum(forecast.values()), digits=2)))
    if peak:
        rows.append(("measured peak of this process", memory_text(peak, digits=2)))
    return table(["part", "size"], rows, numbers=True)


def _commands(record: RunRecord) -> str:
    folder = record.path
    commands = (
        ("chat", folder), ("eval", folder), ("export", folder, "--format", "merged", "--output", folder / "merged"),
        ("serve", folder),
    )  # fmt: skip
    return "".join(f"{shell_command(*words)}\n" for words in commands)


def _repeat(record: RunRecord) -> str:
    environment = {
        k: v for k, v in record.environment.items() if k not in {"basis", "base place", "packages", "forecast"}
    }
    packages = record.environment.get("packages", {})
    return (
        code(f"{shell_command('train', record.path / RECIPE, '--output', 'ANOTHER-FOLDER')}\n")
        + folded("The whole recipe", code(record.recipe_text, wrapped=True))
        + folded("Machine and versions", table((), [*environment.items(), *packages.items()]))
        + folded("Fingerprints of model and data", code(_leaves(record.environment.get("basis", {})), wrapped=True))
    )


def _leaves(tree: Any, prefix: str = "") -> str:
    if not isinstance(tree, Mapping):
        return ""
    lines = ""
    for key, value in tree.items():
        lines += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"{prefix}{key}: {value}\n"
    return lines


def _plain(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")
