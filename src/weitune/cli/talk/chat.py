"""``weitune chat``: talk to the model of a run, or have one question answered."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weitune.cli.shared.open_runs import opened
from weitune.cli.shared.options import (
    accept_changed_base_option,
    adapter_base_option,
    checkpoint_option,
    gguf_type_option,
)
from weitune.cli.shared.sampling_options import sampling_from, sampling_options
from weitune.cli.shared.schema_options import schema_from, schema_options
from weitune.messages import say

if TYPE_CHECKING:
    from weitune.cli.talk.session import ChatSession
    from weitune.generate.run import Run
    from weitune.run.run_folder import Which

ENGINES = ("transformers", "llama.cpp")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="Answer TEXT on standard output, and nothing else, and exit.")
@checkpoint_option(
    "last",
    "best",
    "base",
    help="The adapter of step N, the last one, the one with the lowest validation loss, or none.",
)
@click.option("--system", metavar="TEXT", help="System prompt instead of the run's own; '' for none.")
@adapter_base_option
@accept_changed_base_option
@sampling_options
@schema_options
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="transformers",
    show_default=True,
    help="llama.cpp is faster on CPUs; its answers are those of a quantized base.",
)
@gguf_type_option(help="Type of the base's matrices in llama.cpp; F32 answers as transformers does.")
@click.option(
    "--device", metavar="DEVICE", help="Where transformers compute, such as cpu or cuda:1.  [default: the best]"
)
@click.option("--url", metavar="URL", help="Ask the server there; RUN is then the name of a model it has.")
@click.option("--api-key", metavar="KEY", envvar="WEITUNE_API_KEY", show_envvar=True, help="The server's key.")
def command(run: Path, prompt: str | None, checkpoint: Which, system: str | None, **options: Any) -> int:
    """Talk to the model that was tuned in the folder RUN, or to an adapter that PEFT or a program built on it wrote.

    Answers appear as they are generated and the dialogue is remembered; type /help for what else can be done. Ctrl-C
    stops an answer, Ctrl-D ends the chat. Questions can also come from a pipe, one a line.
    """
    sampling = sampling_from(options)
    schema = schema_from(options, here=options["url"] is None)
    folder = None
    if options["url"] is None:
        folder = _opened(run, system, options)
        folder.adapter_folder(checkpoint)  # fail before the libraries load
        system = folder.recipe.system if system is None else system or None
    else:
        _check_remote(checkpoint, system)

    from weitune.cli.shared.terminal import quiet_libraries, working

    with working(say("cli.chat.starting")):  # importing the libraries takes seconds
        if folder is not None:
            quiet_libraries(models=options["engine"] == "transformers")
            folder.base_files()
        from weitune.cli.talk.session import ChatSession
    with _targets(folder, str(run), checkpoint, options) as pair:
        _talk(ChatSession(*pair, system=system, sampling=sampling, schema=schema), prompt)
    return 0


def _opened(run: Path, system: str | None, options: dict[str, Any]) -> Run:
    """Open the run or the plain adapter, which takes its system prompt from ``system``."""
    from weitune.generate.plain_adapter import is_plain_adapter

    own = system if is_plain_adapter(run) else None
    return opened([run], model=options["model"], system=own, accept_changed_base=options["accept_changed_base"])(run)


def _targets(folder: Run | None, name: str, checkpoint: Which, options: dict[str, Any]) -> Any:
    from weitune.cli.talk import targets

    if folder is None:
        return targets.on_server(options["url"], "base" if checkpoint == "base" else name, options["api_key"])
    if options["engine"] == "llama.cpp":
        return targets.in_llama_cpp(folder, checkpoint, options["gguf_type"])
    return targets.in_transformers(folder, checkpoint, options["device"])


def _check_remote(checkpoint: Which, system: str | None) -> None:
    given = click.get_current_context().get_parameter_source
    for name in ("engine", "gguf_type", "device", "model", "accept_changed_base"):
        if given(name) == click.core.ParameterSource.COMMANDLINE:
            option = name.removeprefix("gguf_").replace("_", "-")
            raise click.UsageError(say("cli.chat.not_with_url", option=option))
    if checkpoint not in {"last", "base"}:
        raise click.UsageError(say("cli.chat.server_has_the_checkpoint"))
    if system == "":
        raise click.UsageError(say("cli.chat.no_empty_system_with_url"))


def _talk(session: ChatSession, prompt: str | None) -> None:
    if prompt is not None:
        session.load()
        session.say(prompt)
    elif sys.stdin.isatty():
        from weitune.cli.talk.input import typed_lines

        session.welcome()
        session.converse(typed_lines(), stoppable=True)
    else:
        session.load()
        session.converse(sys.stdin)
