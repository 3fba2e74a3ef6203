"""``weitune train``: from a recipe, or from options alone, to an adapter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from weitune.cli.shared.recipe_options import overrides_from, recipe_options
from weitune.cli.train.launch import Machines, launch
from weitune.messages import say
from weitune.ranks import launched, rank
from weitune.shell import shell_command


@click.command()
@click.argument("recipe", required=False, metavar="[RECIPE]")
@click.option("--resume", "resume_from", metavar="RUN", help="Go on with the run in this folder.")
@click.option("--resume-existing", is_flag=True,
              help="Go on with the run if its folder (--output) holds it; start it if not. For commands that are "
              "started again after a crash.")  # fmt: skip
@click.option("--device", metavar="DEVICE", help="Device to train on, such as cpu or cuda:1.  [default: the best one]")
@click.option("--devices", type=click.IntRange(min=1), help="Processes on this machine, one for each device.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Machines that train together.  [default: 1]")
@click.option("--node-rank", type=int, default=0, help="Which of the machines this is, from 0.  [default: 0]")
@click.option("--main-address", default="", metavar="HOST:PORT", help="Where machine 0 meets the others.")
@recipe_options
@click.pass_context
def command(
    context: click.Context, /, recipe: str | None, resume_from: str | None, resume_existing: bool, device: str | None,
    devices: int | None, nodes: int, node_rank: int, main_address: str, **options: Any,
) -> int | None:  # fmt: skip
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
    if ((devices or 1) > 1 or nodes > 1) and not launched():
        return launch(Machines(devices or 1, nodes, node_rank, main_address), context.obj)
    if resume_from is not None:
        if recipe is not None:
            raise click.UsageError(say("cli.train.give_recipe_resume_not"))
        if resume_existing:
            raise click.UsageError(say("cli.train.give_resume_resume_existing"))
        _run(lambda reporter, stop: _resume(resume_from, overrides, reporter, device, stop))
    else:
        from weitune.recipe.load import load_recipe

        if recipe is None and not overrides:
            raise click.UsageError(say("cli.train.give_recipe_least_model"))
        built = load_recipe(recipe, overrides)
        _run(lambda reporter, stop: _train(built, resume_existing, reporter, device, stop))
    return None


def _train(recipe: Any, resume_existing: bool, reporter: Any, device: str | None, stop: Any) -> Path:
    from weitune.training.run import train

    return train(recipe, resume_existing=resume_existing, reporter=reporter, device=device, stop=stop).path


def _resume(folder: str, overrides: dict[str, Any], reporter: Any, device: str | None, stop: Any) -> Path:
    from weitune.training.run import resume

    return resume(folder, overrides=overrides, reporter=reporter, device=device, stop=stop).path


def _announce(line: str) -> None:
    """Say what a signal will do. A handler may run in the middle of a print, so it writes past Python's streams."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())


def _run(work: Callable[[Any, Any], Path]) -> None:
    """Do ``work`` with a reporter that draws and a stop request, and say what can be done with the result."""
    from weitune.training.signals import StopRequest, stop_requests

    with stop_requests(StopRequest(_announce)) as stop:  # before the libraries load, which takes seconds
        _shown(lambda reporter: work(reporter, stop))


def _shown(work: Callable[[Any], Path]) -> None:
    from weitune.cli.shared.terminal import console, quiet_libraries
    from weitune.cli.train.training_view import TrainingView
    from weitune.training.reporter import Reporter

    quiet_libraries()
    if rank() != 0:  # one process of several talks
        work(Reporter())
        return
    with TrainingView() as view:
        folder = work(view)
    console().print(
        say("cli.train.done_talk", folder=folder / "adapter", command=shell_command("chat", folder)), markup=False
    )
