"""``weitune merge-adapters``: one adapter from several runs of one base."""

from __future__ import annotations

import math
from pathlib import Path

import click

from weitune.cli.shared.open_runs import note
from weitune.cli.shared.options import FiniteRange, accept_changed_base_option
from weitune.export.options import METHODS, Method, Mixture
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FOLDER
from weitune.shell import shell_command


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN …")
@click.option("--output", required=True, metavar="FOLDER", help="Folder of the run to make.")
@click.option("--weights", metavar="NUMBER,…", help="Weight of each adapter.  [default: equal, with the sum 1]")
@click.option("--method", type=click.Choice(METHODS), default="linear", show_default=True, help="How they combine.")
@click.option(
    "--density",
    type=FiniteRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of the entries that ties and dare keep.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Fixes what dare drops.")
@accept_changed_base_option
def command(
    runs: tuple[str, ...],
    output: str,
    weights: str | None,
    method: Method,
    density: float,
    seed: int,
    accept_changed_base: bool,
) -> None:
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
        if not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError:
        raise click.BadParameter(say("cli.merge_adapters.not_weights"), param_hint="--weights") from None
    from weitune.cli.shared.terminal import console, quiet_libraries
    from weitune.export.combine import combine
    from weitune.generate.run import Run

    quiet_libraries()
    mixture = Mixture(method, numbers, density, seed)
    parts = [Run(path, accept_changed_base=accept_changed_base, say=note) for path in runs]
    run = combine(parts, Path(output), mixture)
    console().print(
        say("cli.merge_adapters.done", path=run.path / ADAPTER_FOLDER, command=shell_command("chat", run.path)),
        markup=False,
    )
