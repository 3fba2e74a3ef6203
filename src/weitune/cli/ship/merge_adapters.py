"""``weitune merge-adapters``: one adapter from several runs of one base."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from weitune.cli.shared.run_options import accepting_changed_base, note
from weitune.messages import say
from weitune.shell import shell_command

_METHODS = ("linear", "cat", "svd", "ties", "dare")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN …")
@click.option("--output", required=True, metavar="FOLDER", help="Folder of the run to make.")
@click.option("--weights", metavar="NUMBER,…", help="Weight of each adapter.  [default: equal, with the sum 1]")
@click.option("--method", type=click.Choice(_METHODS), default="linear", show_default=True, help="How they combine.")
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True,
              help="Share of the entries that ties and dare keep.")  # fmt: skip
@click.option("--seed", type=int, default=42, show_default=True, help="Fixes what dare drops.")
@accepting_changed_base
def command(
    runs: tuple[str, ...], output: str, weights: str | None, method: str, density: float, seed: int,
    accept_changed_base: bool,
) -> None:  # fmt: skip
    """Combine the adapters of runs that share a base into a new run.

    linear adds matrices of one rank; cat adds the updates exactly, and ranks add up; svd does so and cuts back to the
    largest rank; ties and dare drop entries first.

    \b
      weitune merge-adapters runs/a runs/b --weights 0.7,0.3 --output runs/ab
      weitune merge-adapters runs/a runs/b --method ties --density 0.3 --output runs/ab
      weitune chat runs/ab
    """
    try:
        numbers = [float(part) for part in weights.split(",")] if weights else []
    except ValueError:
        raise click.BadParameter(
            say("cli.merge_adapters.numbers_separated_commas_such"), param_hint="--weights"
        ) from None
    from weitune.cli.shared.terminal import console, quiet_libraries
    from weitune.export.combine import Method, Mixture, combine
    from weitune.generate.run import Run

    quiet_libraries()
    chosen: Method = next(each for each in get_args(Method) if each == method)
    mixture = Mixture(chosen, numbers, density, seed)
    parts = [Run(path, accept_changed_base=accept_changed_base, say=note) for path in runs]
    run = combine(parts, Path(output), mixture)
    console().print(
        say("cli.merge_adapters.done_talk", path=run.path / "adapter", command=shell_command("chat", run.path)),
        markup=False,
    )
