"""The output of ``weitune eval`` in a terminal: a column for each model, then answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitune.evaluate.evaluation import Evaluation, ModelScores
from weitune.evaluate.figures import figures
from weitune.messages import say

_SHOWN_ANSWERS = 5


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the figures of every model, and some answers."""
    console = Console(highlight=False, soft_wrap=True)
    rows = evaluation.rows
    console.print(Text(say("cli.eval_view.rows", name=rows.name, examples=rows.examples, questions=rows.questions)))
    if evaluation.schema is not None:
        console.print(Text(say("cli.eval_view.kept_to_schema")))
    console.print(_table(evaluation.models))
    if win := evaluation.win_rate:
        console.print(Text(say("cli.eval_view.win_rate", win=win)))
    for answer in evaluation.answers[:_SHOWN_ANSWERS]:
        console.print(Text(f"\n{answer.prompt}", style="bold"))
        if answer.reference is not None:
            console.print(Text(say("cli.eval_view.data", answer=answer.reference), style="dim"))
        for which, said in answer.said.items():
            console.print(Text(f"  {which:6s} {said}"))


def _table(models: Sequence[ModelScores]) -> Table:
    table = Table("", box=None)
    for model in models:
        table.add_column(model.which, justify="right")
    for row in figures(models):
        table.add_row(*row)
    return table
