"""The part of a report that an evaluation gives: figures of each model, quality over steps, answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weitune.report.chart import Line, chart
from weitune.report.page import folded, section, table

MEASURES = {
    "chrf": "chrF", "bleu": "BLEU", "rouge_l": "ROUGE-L", "exact": "exact match", "distinct_1": "distinct-1",
    "distinct_2": "distinct-2", "stopped": "ended by themselves", "tokens": "tokens, mean",
}  # fmt: skip
_SHOWN_ANSWERS = 20
_DRAWN = ("loss", "chrf", "rouge_l")


def evaluation_section(evaluation: Mapping[str, Any] | None, title: str = "Judged beside its base") -> str:
    """Return the section, or nothing if there was no evaluation."""
    if not evaluation or not evaluation.get("models"):
        return ""
    models, rows = evaluation["models"], evaluation.get("rows", {})
    lead = f"{rows.get('name')}: {rows.get('examples')} examples, {rows.get('questions')} questions"
    names = [model["which"] for model in models]
    shown = [[answer.get("prompt"), answer.get("reference"), *(answer["said"].get(name, "") for name in names)]
             for answer in evaluation.get("answers", [])]  # fmt: skip
    heads = ["question", "data", *names]
    general = [[answer.get("prompt"), *(answer["said"].get(name, "") for name in names)]
               for answer in evaluation.get("general", [])]  # fmt: skip
    return section(
        title,
        table(["", *names], figures(models), numbers=True),
        f'<div class="charts">{_over_steps(models)}</div>\n',
        _win(evaluation.get("win_rate")),
        table((), [(f"Judged by {lead}",)]),
        table(heads, shown[:_SHOWN_ANSWERS], said=True),
        folded(f"All {len(shown)} answers", table(heads, shown, said=True)) if len(shown) > _SHOWN_ANSWERS else "",
        folded("General questions", table(["question", *names], general, said=True)),
    )


def figures(models: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return one row a measure, one column a model."""
    rows = [[name, *(number(model.get(name)) for model in models)] for name in ("loss", "perplexity")]
    rows += [[name, *(number(model["scores"].get(key)) for model in models)]
             for key, name in MEASURES.items() if any(model.get("scores") for model in models)]  # fmt: skip
    if all(model.get("general") for model in models):
        rows.append(["general questions: loss", *(number(model["general"]["loss"]) for model in models)])
        for language in models[0]["general"]["right"]:
            shares = (f"{model['general']['right'][language]:.0%}" for model in models)
            rows.append([f"general questions: right ({language})", *shares])
    return rows


def number(value: object) -> str:
    """Return a figure in three decimals, or a dash for none."""
    return f"{value:,.3f}" if isinstance(value, int | float) else "–"


def _over_steps(models: Sequence[Mapping[str, Any]]) -> str:
    """Return curves over the checkpoints, if several were judged; the base stands at step 0."""
    stepped = [model for model in models if model.get("step") is not None]
    if len(stepped) < 2:
        return ""
    points = [*((0, model) for model in models if model["which"] == "base"), *((m["step"], m) for m in stepped)]
    drawn = []
    for at, key in enumerate(_DRAWN):
        line = [(float(step), float(value)) for step, model in points
                if (value := model.get(key) if key == "loss" else model["scores"].get(key)) is not None]  # fmt: skip
        drawn.append(chart(f"{MEASURES.get(key, 'Loss on the answers')} by checkpoint", [Line(key, line, colour=at)]))
    return "".join(drawn)


def _win(win: Mapping[str, Any] | None) -> str:
    if not win:
        return ""
    return table(["judge", "pairs", "wins", "losses", "win rate", "95 % interval"], [[
        f"{win['which']} against base, by {win['judge']}", win["pairs"], win["wins"], win["losses"],
        f"{win['rate']:.0%}", f"{win['low']:.0%} to {win['high']:.0%}",
    ]], numbers=True)  # fmt: skip
