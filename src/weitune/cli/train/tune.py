"""``weitune tune``: find the learning rate, and other settings, by trying some."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from weitune.cli.shared.options import FiniteRange, training_device_option
from weitune.cli.shared.recipe_options import overrides_from, recipe_options
from weitune.cli.shared.status import began, status_options, tell
from weitune.files.paths import user_path
from weitune.messages import say
from weitune.shell import shell_command


@click.command()
@click.argument("recipe", required=False, metavar="[RECIPE]")
@click.option("--also", default="", metavar="NAME,…", help="Try these too: batch_size, r, epochs.")
@click.option(
    "--budget",
    type=FiniteRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Steps of all trials, as a multiple of the recipe's own run. The final run comes on top.",
)
@click.option("--resume", "resume_from", type=click.Path(path_type=Path), metavar="FOLDER", help="Go on with a search.")
@training_device_option
@recipe_options
@status_options()
@click.pass_context
def command(
    context: click.Context,
    /,
    recipe: str | None,
    also: str,
    budget: float,
    resume_from: Path | None,
    device: str | None,
    **options: Any,
) -> None:
    """Find the learning rate of a recipe by trying some on a part of its steps.

    RECIPE and options are those of `weitune train`; --output is the folder of the search, `tunes/<time>` if not given.
    The recipe's own `output` stays the folder of its run. The model is loaded once, and every trial trains a fresh
    adapter. `best.yaml` in the folder is the recipe with the settings found, `tune.html` has every trial. Rows that the
    recipe does not hold out are held out here, 5 %.
    """
    names = [name.strip() for name in also.split(",") if name.strip()]
    overrides = overrides_from(options)
    from weitune.tune.search import ALSO

    if unknown := [name for name in names if name not in ALSO]:
        known = ", ".join(ALSO)
        raise click.BadParameter(say("cli.tune.unknown", name=unknown[0], known=known), param_hint="--also")
    given = context.get_parameter_source("budget") is ParameterSource.COMMANDLINE
    if resume_from is not None and (recipe is not None or overrides or names or given):
        raise click.UsageError(say("cli.tune.recipe_with_resume"))
    if resume_from is None:
        from weitune.recipe.load import load_recipe

        if recipe is None and not overrides:
            raise click.UsageError(say("cli.tune.nothing_given"))
        named = overrides.pop("output", None)
        built = load_recipe(recipe, overrides)

    from weitune.training.signals import StopRequest, stop_requests

    with stop_requests(StopRequest(began=began())) as stop:
        from weitune.cli.shared.terminal import console, quiet_libraries, working

        with working(say("cli.tune.starting")):
            quiet_libraries()
            from weitune.cli.train.tune_view import TuneView
            from weitune.tune.folder import BEST, default_folder
            from weitune.tune.tune import resume, tune
        with TuneView() as view:
            if resume_from is not None:
                found = resume(resume_from, view=view, device=device, stop=stop)
            else:
                folder = user_path(named) if named else default_folder()
                tell(folder=str(folder))
                found = tune(built, folder, also=names, budget=budget, view=view, device=device, stop=stop)
    best = found.folder / BEST
    tell(folder=str(found.folder), best=asdict(found.best), loss=found.loss)
    done = say("cli.tune.done", best=found.best, loss=found.loss, command=shell_command("train", best))
    console().print(done, markup=False)
