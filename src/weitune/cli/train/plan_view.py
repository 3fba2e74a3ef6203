"""How ``weitune plan`` looks in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitune.messages import say
from weitune.messages.quantities import duration_text, memory_text

if TYPE_CHECKING:
    from weitune.forecast.run_forecast import Fit
    from weitune.training.run_plan import RunPlan


def print_outlook(outlook: RunPlan) -> None:
    """Print parameters, data and steps, memory by part and by device, disk, time, and what makes the run fit."""
    console = Console(highlight=False, soft_wrap=True)
    for line in [*_about(outlook), ""]:
        console.print(Text(line))
    console.print(_by_part(outlook.here, outlook.processes))
    console.print()
    for name in dict.fromkeys(each.target.name for each in outlook.fits):
        console.print(_by_device([each for each in outlook.fits if each.target.name == name]))
        console.print()
    console.print(Text(say("cli.plan_view.disk_run_s_folder", size=memory_text(outlook.disk))))
    if outlook.timing is not None:
        timing = outlook.timing
        console.print(
            Text(
                say(
                    "cli.plan_view.time_all_steps_s",
                    duration=duration_text(timing.seconds),
                    step_seconds=timing.step_seconds,
                    tokens_per_second=timing.tokens_per_second,
                )
            )
        )
    if outlook.here.fits:
        console.print(Text(say("cli.plan_view.fits_here"), style="bold green"))
        return
    console.print(Text(say("cli.plan_view.will_not_fit_here"), style="bold red"))
    ways = outlook.ways or ["no key alone: take a smaller model, or more memory"]
    console.print(Text("\n".join(["what makes it fit:", *(f"  {way}" for way in ways)])))


def _about(outlook: RunPlan) -> list[str]:
    meta = outlook.meta
    share = meta.trainable / meta.parameters
    lines = [f"parameters: {meta.parameters:,}, of which {meta.trainable:,} are trained ({share:.4%})"]
    lines += outlook.notes
    if outlook.inputs is not None and outlook.workload is not None:
        plan = outlook.inputs.plan
        lines.append(
            say("cli.plan_view.tokens_need_no_computation", saved_by_sharing=outlook.workload.saved_by_sharing)
        )
        lines.append(
            say(
                "cli.plan_view.steps_epoch_examples_each",
                steps=plan.steps,
                steps_per_epoch=plan.steps_per_epoch,
                batch_size=plan.batch_size,
            )
        )
    return lines


def _by_part(here: Fit, processes: int) -> Table:
    stored = f", stored in {here.format.storage}" * (here.format.storage != here.format.precision)
    each = f"Memory of each of {processes} processes at the peak" if processes > 1 else "Memory at the peak"
    title = f"{each}, {here.target.name}, {here.format.precision}{stored}"
    caption = f"train.micro_tokens {here.chosen.micro_tokens:,}, train.recompute {here.chosen.recompute}"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=None)
    table.add_column("part")
    table.add_column("size", justify="right")
    for name, size in here.need.named_parts().items():
        table.add_row(name, memory_text(size))
    table.add_row("all", memory_text(here.need.total), style="bold")
    table.add_row("free", memory_text(here.target.memory), style="dim")
    return table


def _by_device(fits: Sequence[Fit]) -> Table:
    target = fits[0].target
    title = say("cli.plan_view.what_would_fit_free", name=target.name, size=memory_text(target.memory))
    table = Table(title=title, title_justify="left", box=None)
    for name in ("train.storage", "computed in", "memory", "micro_tokens", "recompute"):
        table.add_column(name, justify="right")
    for each in fits:
        need = memory_text(each.need.total)
        verdict = Text(need, style="green") if each.fits else Text(f"no: {need}", style="red")
        chosen = each.chosen
        table.add_row(*astuple(each.format)[::-1], verdict, f"{chosen.micro_tokens:,}", chosen.recompute)
    return table
