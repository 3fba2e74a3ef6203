"""The output of ``weitune plan`` in a terminal."""

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
    from weitune.export.support import ExportSupport
    from weitune.forecast.run_forecast import Fit
    from weitune.training.run_plan import RunPlan


def print_plan(plan: RunPlan, exports: ExportSupport) -> None:
    """Print parameters, data and steps, memory by part and by device, disk, time, exports, and what makes it fit."""
    console = Console(highlight=False, soft_wrap=True)
    for line in [*_about(plan), *exports.lines(), ""]:
        console.print(Text(line))
    console.print(_by_part(plan.here, plan.processes))
    console.print()
    for name in dict.fromkeys(each.target.name for each in plan.fits):
        console.print(_by_device([each for each in plan.fits if each.target.name == name]))
        console.print()
    console.print(Text(say("cli.plan_view.disk", size=memory_text(plan.disk))))
    if plan.timing is not None:
        timing, preference = plan.timing, plan.recipe.preference
        console.print(Text(say("cli.plan_view.time", duration=duration_text(timing.seconds), timing=timing)))
        if preference is not None and preference.has_reference:
            duration = duration_text(timing.reference_seconds)
            if preference.method == "kto":
                console.print(Text(say("cli.plan_view.reference_of_kto", duration=duration)))
            else:
                console.print(Text(say("cli.plan_view.reference", method=preference.method, duration=duration)))
    if plan.here.fits:
        console.print(Text(say("cli.plan_view.fits"), style="bold green"))
        return
    console.print(Text(say("cli.plan_view.does_not_fit"), style="bold red"))
    ways = plan.ways or [say("cli.plan_view.no_way")]
    console.print(Text("\n".join([say("cli.plan_view.ways"), *(f"  {way}" for way in ways)])))


def _about(plan: RunPlan) -> list[str]:
    meta = plan.meta
    share = meta.trainable / meta.parameters
    lines = [say("cli.plan_view.parameters", parameters=meta.parameters, trainable=meta.trainable, share=share)]
    lines += [*(meta.targets.lines() if meta.targets else ()), *plan.notes]
    if plan.inputs is not None and plan.workload is not None:
        lines.append(say("cli.plan_view.saved_by_sharing", saved_by_sharing=plan.workload.saved_by_sharing))
        schedule = plan.inputs.plan
        lines.append(say("cli.plan_view.steps", schedule=schedule, unit=plan.inputs.unit))
    return lines


def _by_part(here: Fit, processes: int) -> Table:
    storage = here.format.storage
    precision: str = here.format.precision
    if storage != precision:
        precision = say("cli.plan_view.stored_in", precision=precision, storage=storage)
    title = say("cli.plan_view.title", name=here.target.name, precision=precision)
    if processes > 1:
        title = say("cli.plan_view.title_of_processes", processes=processes, name=here.target.name, precision=precision)
    caption = say("cli.plan_view.caption", micro_tokens=here.chosen.micro_tokens, recompute=here.chosen.recompute)
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=None)
    table.add_column(say("cli.plan_view.part"))
    table.add_column(say("cli.plan_view.size"), justify="right")
    for name, size in here.need.named_parts().items():
        table.add_row(name, memory_text(size))
    table.add_row(say("cli.plan_view.all"), memory_text(here.need.total), style="bold")
    table.add_row(say("cli.plan_view.free"), memory_text(here.target.memory), style="dim")
    return table


def _by_device(fits: Sequence[Fit]) -> Table:
    target = fits[0].target
    title = say("cli.plan_view.title_by_device", name=target.name, size=memory_text(target.memory))
    table = Table(title=title, title_justify="left", box=None)
    computed, memory = say("cli.plan_view.computed_in"), say("cli.plan_view.memory")
    for heading in ("train.storage", computed, memory, "micro_tokens", "recompute"):
        table.add_column(heading, justify="right")
    for each in fits:
        need = memory_text(each.need.total)
        verdict = Text(need, style="green") if each.fits else Text(say("cli.plan_view.no", size=need), style="red")
        chosen = each.chosen
        table.add_row(*astuple(each.format)[::-1], verdict, f"{chosen.micro_tokens:,}", chosen.recompute)
    return table
