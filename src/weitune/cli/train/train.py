"""``weitune train``: from a recipe, or from options alone, to an adapter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from weitune.cli.shared.options import training_device_option
from weitune.cli.shared.recipe_options import overrides_from, recipe_options
from weitune.cli.shared.status import began, hand_over, status_options, tell
from weitune.cli.train.launch import Machines, launch, refuse_one_device
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FOLDER
from weitune.ranks import WORLD_SIZE, launched, rank, world_size
from weitune.shell import shell_command

if TYPE_CHECKING:
    from weitune.training.reporter import Reporter


@click.command()
@click.argument("recipe", required=False, metavar="[RECIPE]")
@click.option("--resume", "resume_from", metavar="RUN", help="Go on with the run in this folder.")
@click.option(
    "--resume-existing",
    is_flag=True,
    help="Go on with the run if its folder (--output) holds it; start it if not. For commands that are "
    "started again after a crash.",
)
@training_device_option
@click.option("--devices", type=click.IntRange(min=1), help="Processes on this machine, one for each device.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Machines that train together.  [default: 1]")
@click.option("--node-rank", type=int, default=0, help="Which of the machines this is, from 0.  [default: 0]")
@click.option("--main-address", default="", metavar="HOST:PORT", help="Where machine 0 meets the others.")
@recipe_options
@status_options()
@click.pass_context
def command(
    context: click.Context,
    /,
    recipe: str | None,
    resume_from: str | None,
    resume_existing: bool,
    device: str | None,
    devices: int | None,
    nodes: int,
    node_rank: int,
    main_address: str,
    **options: Any,
) -> int | None:
    """Fine-tune a chat model on dialogues with LoRA.

    RECIPE is a YAML file or the name of a preset (demo, fast, tutorial); every key of it can be given as an option
    too, and an option wins.

    \b
      weitune train --model Qwen/Qwen2.5-7B-Instruct --data dialogues.json --output runs/mine
      weitune train recipe.yaml --lora.r 16
      weitune train --resume runs/mine
      weitune train recipe.yaml --output runs/mine --resume-existing
      weitune train recipe.yaml --devices 8
    """
    overrides = overrides_from(options)
    if launched() and (devices or nodes > 1) and (devices or 1) * nodes != world_size():
        raise click.UsageError(say("cli.train.launched_otherwise", processes=world_size(), variable=WORLD_SIZE))
    if ((devices or 1) > 1 or nodes > 1) and not launched():
        refuse_one_device(device, devices or 1)
        return launch(Machines(devices or 1, nodes, node_rank, main_address), context.obj, hand_over())
    if resume_from is None:
        from weitune.recipe.load import load_recipe

        if recipe is None and not overrides:
            raise click.UsageError(say("cli.train.nothing_given"))
        built = load_recipe(recipe, overrides)
    elif recipe is not None:
        raise click.UsageError(say("cli.train.recipe_with_resume"))
    elif resume_existing:
        raise click.UsageError(say("cli.train.resume_with_resume_existing"))

    from weitune.training.signals import StopRequest, stop_requests

    with stop_requests(StopRequest(_announce, began())) as stop:  # before the libraries load, which takes seconds
        with _reporter() as reporter:
            from weitune.training.run import resume, train

            if resume_from is None:
                run = train(built, resume_existing=resume_existing, reporter=reporter, device=device, stop=stop)
            else:
                run = resume(resume_from, overrides=overrides, reporter=reporter, device=device, stop=stop)
        tell(run=str(run.path))
        if rank() == 0:
            from weitune.cli.shared.terminal import console

            done = say("cli.train.done", folder=run.path / ADAPTER_FOLDER, command=shell_command("chat", run.path))
            console().print(done, markup=False)
    return None


@contextlib.contextmanager
def _reporter() -> Iterator[Reporter]:
    """Yield a reporter that draws in the process of rank 0, and a silent one in the others."""
    from weitune.cli.shared.terminal import quiet_libraries

    quiet_libraries()
    from weitune.cli.train.training_view import TrainingView
    from weitune.training.reporter import Reporter

    if rank() != 0:
        yield Reporter()
        return
    with TrainingView() as view:
        yield view


def _announce(line: str) -> None:
    """Print what a signal will do. A handler may interrupt a print, so it bypasses Python's streams."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
