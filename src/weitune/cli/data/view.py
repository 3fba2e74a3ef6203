"""The output of ``weitune data`` in a terminal: the report with a histogram, and examples in colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitune.data.show.preview import BORDER
from weitune.messages import say

if TYPE_CHECKING:
    from weitune.data.show.check import Check
    from weitune.data.show.preview import Part, PreviewAnswer, PreviewItem

_BINS = 12
_BAR_WIDTH = 40
_WORSE = "bold magenta"
"""The style of answers that the model learns not to give."""
_STYLES = {"learned": "bold green", "control": "dim cyan", "prompt": ""}

_UNITS = {"tokens": "cli.data_view.tokens", "characters": "cli.data_view.characters"}


def print_check(result: Check, method: str | None = None) -> None:
    """Print the accounts, the lengths, what sharing saves, every kind of problem, and the verdict.

    ``method`` is the `preference.method` that fits the rows, if the user has to name one for training.
    """
    console = Console(highlight=False, soft_wrap=True)
    for line in result.report.lines():
        console.print(Text(line))
    if len(result.lengths):
        console.print()
        console.print(_percentiles(result))
        console.print()
        for line in histogram(result.lengths):
            console.print(Text(line))
        console.print(Text(say("cli.data_view.unit", unit=say(_UNITS[result.unit])), style="dim"))
    if result.steps_per_epoch:
        console.print(Text(say("cli.data_view.steps_per_epoch", steps_per_epoch=result.steps_per_epoch)))
    if result.saved_by_sharing is not None:
        console.print(Text(say("cli.data_view.saved_by_sharing", saved_by_sharing=result.saved_by_sharing)))
    for line in result.problems.lines():
        console.print(Text(line, style="" if line.startswith(" ") else "bold red"))
    if result.ready:
        ready = say("cli.data_view.ready")
        ready = ready if method is None else say("cli.data_view.ready_with_method", method=method)
        console.print(Text(ready, style="bold green"))
    else:
        console.print(Text(say("cli.data_view.not_ready"), style="bold red"))


def _percentiles(result: Check) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(say(_UNITS[result.unit]))
    lengths = result.report.lengths
    rows = {
        say("cli.data_view.prompt"): lengths.prompt_per_example,
        say("cli.data_view.answer"): lengths.answer_per_example,
        say("cli.data_view.whole"): lengths.per_example,
    }
    headings = {"p0": say("cli.data_view.least"), "p50": say("cli.data_view.median"), "p100": say("cli.data_view.most")}
    for column in lengths.per_example:
        table.add_column(headings.get(column, column), justify="right")
    for name, spread in rows.items():
        table.add_row(name, *(f"{value:,}" for value in spread.values()))
    return table


def histogram(lengths: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int32]]) -> list[str]:
    """Return one line for each of up to twelve ranges of lengths, with a bar for how many fall into it."""
    counts, edges = np.histogram(lengths, bins=_edges(int(np.min(lengths)), int(np.max(lengths))))
    width = len(f"{edges[-1]:,.0f}")
    most = counts.max()
    return [
        f"{edge:>{width},} {'█' * -(-count * _BAR_WIDTH // most)} {count:,}"
        for edge, count in zip(edges[:-1].astype(int), counts, strict=True)
    ]


def _edges(least: int, most: int) -> Sequence[int]:
    rough = max(1, (most - least + 1) / _BINS)
    scale = 10 ** int(np.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    start = least // step * step
    return range(start, most + step + 1, step)


def print_preview(items: Iterable[PreviewItem], notes: Iterable[str]) -> None:
    """Print examples with learned text in green and control tokens dimmed, then the learned text alone.

    The answers of a pair are printed beside each other, the rejected one in another colour.
    """
    console = Console(highlight=False, soft_wrap=True)
    for note in notes:
        console.print(Text(note, style="dim"))
    for item in items:
        console.print(Text(f"── {item.place}", style="bold").append(f" · {_facts(item)}", style="dim"))
        for problem in item.problems:
            console.print(Text(say("cli.data_view.problem", problem=problem, fix=problem.fix), style="red"))
        if item.all_parts:
            console.print(_assembled(item.parts), end="")
            console.print("" if item.parts and item.parts[-1].text.endswith("\n") else "\n", end="")
            for part in item.parts:
                if part.kind == "learned":
                    console.print(Text(say("cli.data_view.learned"), style="bold").append_text(_styled(part)))
            if item.answers:
                console.print(_beside_each_other(item.answers), soft_wrap=False)
            if any(part.borders for part in item.all_parts):
                console.print(Text(say("cli.data_view.borders", border=BORDER), "dim"))
            console.print()


def _beside_each_other(answers: Sequence[PreviewAnswer]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for answer in answers:
        table.add_column(Text(answer.title, style="bold"), ratio=1, overflow="fold")
    table.add_row(*(_assembled(answer.parts, liked=answer.liked) for answer in answers))
    return table


def _assembled(parts: Sequence[Part], *, liked: bool = True) -> Text:
    return Text.assemble(*(_styled(part, liked=liked) for part in parts))


def _styled(part: Part, *, liked: bool = True) -> Text:
    style = _STYLES[part.kind] if liked or part.kind != "learned" else _WORSE
    return Text(BORDER, style="bold red").join(Text(piece, style=style) for piece in part.pieces)


def _facts(item: PreviewItem) -> str:
    facts = [say("cli.data_view.facts", tokens=item.tokens, learned=item.learned_tokens)] if item.all_parts else []
    return " · ".join([*facts, *item.tags])
