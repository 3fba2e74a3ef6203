"""``weitune chat``: talk to the model of a run, or have one question answered."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weitune.generate.sampling import Sampling

if TYPE_CHECKING:
    from weitune.generate.run_folder import Which

_SIMPLE_TYPES = {"int": int, "float": float, "int | None": int}


class Checkpoint(click.ParamType):  # type: ignore[type-arg]
    """``last``, ``best``, ``base``, or the step of a checkpoint."""

    name = "checkpoint"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Which:
        """Return ``value`` as a word or a number."""
        if value in {"last", "best", "base"} or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        step = str(value).removeprefix("checkpoint-")
        if not step.isdecimal():
            self.fail(f"'{value}' is neither a step nor 'last', 'best' or 'base'", param, ctx)
        return int(step)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every field of :class:`~weitune.generate.sampling.Sampling`."""
    for option in reversed(fields(Sampling)):
        declare = click.option(
            f"--{option.name.replace('_', '-')}", type=_SIMPLE_TYPES[str(option.type)], default=option.default,
            show_default=option.default is not None, help=option.metadata["help"],
        )  # fmt: skip
        command = declare(command)
    return command


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="Answer TEXT on standard output, and nothing else, and exit.")
@click.option(
    "--checkpoint",
    metavar="N|last|best|base",
    type=Checkpoint(),
    default="last",
    show_default=True,
    help="The adapter of step N, the last one, the one with the lowest validation loss, or none.",
)
@click.option("--system", metavar="TEXT", help="System prompt instead of the run's own; '' for none.")
@sampling_options
@click.option(
    "--device", metavar="DEVICE", help="Where to compute, such as cpu, cuda:1 or mps; if not given, the best there is."
)
def command(
    run: Path, prompt: str | None, checkpoint: Which, system: str | None, device: str | None, **sampling: Any
) -> int:
    """Talk to the model that was tuned in the folder RUN.

    Answers appear as they are generated and the dialogue is remembered; type /help for what else can be done. Ctrl-C
    stops an answer, Ctrl-D ends the chat. Questions can also come from a pipe, one a line.
    """
    from weitune.generate.run_folder import Run

    options = Sampling(**sampling)
    folder = Run(run)
    folder.adapter_folder(checkpoint)  # fail before the libraries load
    system = folder.recipe.system if system is None else system

    from weitune.cli.terminal import quiet_libraries, working

    with working("starting …"):  # importing the libraries takes seconds
        from weitune.cli.chat_session import ChatSession

        quiet_libraries()
    session = ChatSession(folder, checkpoint, device=device, system=system, sampling=options)
    if prompt is not None:
        session.load()
        session.say(prompt)
        return 0
    if sys.stdin.isatty():
        from weitune.cli.chat_input import typed_lines

        session.welcome()
        session.converse(typed_lines(), stoppable=True)
    else:
        session.load()
        session.converse(sys.stdin)
    return 0
