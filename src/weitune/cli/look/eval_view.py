"""How ``weitune eval`` looks in a terminal: one column a model, then answers side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitune.messages import say

MEASURES = {
    "chrf": "chrF", "bleu": "BLEU", "rouge_l": "ROUGE-L", "exact": "exact", "distinct_1": "distinct-1",
    "distinct_2": "distinct-2", "stopped": "stopped", "tokens": "tokens",
}  # fmt: skip
_SHOWN_ANSWERS = 5


def print_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print the figures of every model, and some answers."""
    console = Console(highlight=False, soft_wrap=True)
    rows = evaluation["rows"]
    console.print(
        Text(
            say(
                "cli.eval_view.judged_examples_questions",
                rows=rows["name"],
                rows2=rows["examples"],
                rows3=rows["questions"],
            )
        )
    )
    console.print(_figures(evaluation["models"]))
    if win := evaluation["win_rate"]:
        console.print(
            Text(
                say(
                    "cli.eval_view.against_base_95_interval",
                    win=win["which"],
                    win2=win["judge"],
                    win3=win["rate"],
                    win4=win["low"],
                    win5=win["high"],
                    win6=win["pairs"],
                )
            )
        )
    for answer in evaluation["answers"][:_SHOWN_ANSWERS]:
        console.print(Text(f"\n{answer['prompt']}", style="bold"))
        console.print(Text(say("cli.eval_view.data", answer=answer["reference"]), style="dim"))
        for which, said in answer["said"].items():
            console.print(Text(f"  {which:6s} {said}"))


def _figures(models: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    table.add_column("")
    for model in models:
        table.add_column(model["which"], justify="right")
    for name in ("loss", "perplexity"):
        table.add_row(name, *(_number(model[name]) for model in models))
    for key, name in MEASURES.items():
        if models[0]["scores"]:
            table.add_row(name, *(_number(model["scores"][key]) for model in models))
    if models[0]["general"]:
        table.add_row("general: loss", *(_number(model["general"]["loss"]) for model in models))
        for language in models[0]["general"]["right"]:
            shares = (f"{model['general']['right'][language]:.0%}" for model in models)
            table.add_row(f"general: right, {language}", *shares)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
