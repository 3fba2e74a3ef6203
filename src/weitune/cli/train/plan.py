"""``weitune plan``: what a run will take, before it starts."""

from __future__ import annotations

from typing import Any

import click

from weitune.cli.shared.options import json_option, training_device_option
from weitune.cli.shared.recipe_options import overrides_from, recipe_options
from weitune.messages import say


@click.command()
@click.argument("recipe", required=False, metavar="[RECIPE]")
@training_device_option
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="Also for this GPU, such as 'RTX 4090'.")
@click.option("--device-memory", "memories", multiple=True, metavar="SIZE", help="Also for a GPU with so much: 24GB.")
@click.option("--devices", type=click.IntRange(1), default=1, metavar="N", help="Forecast each of N processes.")
@click.option("--measure", is_flag=True, help="Load the model and time two steps here, to forecast the time.")
@json_option
@recipe_options
def command(
    recipe: str | None,
    device: str | None,
    gpus: tuple[str, ...],
    memories: tuple[str, ...],
    devices: int,
    measure: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Forecast memory, steps, disk and time of a run.

    RECIPE and options are those of `weitune train`. The model's configuration and tokenizer are enough; weights are
    neither needed nor downloaded, unless --measure is given. Exit code 2 says that the run will not fit here.
    """
    from weitune.forecast.gpus import Gpu, find_gpu, parse_memory
    from weitune.recipe.load import load_recipe

    overrides = overrides_from(options)
    if recipe is None and not overrides:
        raise click.UsageError(say("cli.plan.nothing_given"))
    built = load_recipe(recipe, overrides)
    if measure and devices > 1:
        raise click.UsageError(say("cli.plan.measure_takes_one_process"))
    named = [find_gpu(name) for name in gpus]
    named += [Gpu(say("cli.plan.gpu_with_memory", size=size), parse_memory(size) / 10**9, "") for size in memories]

    from weitune.cli.shared.terminal import progress, quiet_libraries, working

    with working(say("cli.plan.looking")):
        quiet_libraries()
        from weitune.training.run_plan import plan_run, timed

        plan = plan_run(built, device=device, others=named, processes=devices)
    if measure:
        with progress(say("cli.plan.measuring"), unit="step") as bar:
            plan = timed(plan, device=device, progress=bar.update)
    from weitune.cli.shared.export_support import export_support
    from weitune.model.load.locate import locate_base

    exports = export_support(built, locate_base(built, weights=False))
    if as_json:
        from weitune.files.json_files import json_bytes

        click.echo(json_bytes({**plan.to_json(), "exports": exports.to_json()}, indent=1), nl=False)
    else:
        from weitune.cli.train.plan_view import print_plan

        print_plan(plan, exports)
    return 0 if plan.here.fits else 2
