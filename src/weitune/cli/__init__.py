"""The command line: a group of commands that are imported only when they run, and their exit codes.

    0 done · 1 a bug of ours · 2 the user's input is wrong · 3 training stopped on a number that is not finite ·
    130 interrupted

``weitune --help`` imports no large library but click, which keeps it under half a second.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from weitune.errors import WeituneError, refused_by_system
from weitune.messages import say
from weitune.messages.language import LANGUAGES, Language, choose_language
from weitune.model.thread_contention import watch_contention


class Entry(NamedTuple):
    """A command's module and summary, so that listing the commands imports none of them."""

    module: str
    summary: str


COMMANDS = {
    "train": Entry("weitune.cli.train.train", "Fine-tune a chat model on your dialogues."),
    "tune": Entry("weitune.cli.train.tune", "Find the learning rate by trying some."),
    "plan": Entry("weitune.cli.train.plan", "Know what a run will take before it starts."),
    "chat": Entry("weitune.cli.talk.chat", "Talk to the model of a run."),
    "watch": Entry("weitune.cli.look.watch", "Look at a run while it trains."),
    "eval": Entry("weitune.cli.look.eval", "Judge a run beside its base model."),
    "report": Entry("weitune.cli.look.report", "Write the report of a run anew."),
    "compare": Entry("weitune.cli.look.compare", "Put several runs side by side."),
    "serve": Entry("weitune.cli.talk.serve", "Serve runs to clients of the OpenAI API."),
    "export": Entry("weitune.cli.ship.export", "Write a run for transformers, llama.cpp, Ollama, with proof."),
    "push": Entry("weitune.cli.ship.push", "Upload an adapter and its model card to a hub."),
    "merge-adapters": Entry("weitune.cli.ship.merge_adapters", "Combine the adapters of several runs."),
    "cache": Entry("weitune.cli.cache.commands", "See what weitune keeps on the disk, and delete it."),
    "demo": Entry("weitune.cli.train.demo", "See all of it in a few minutes: a persona before and after."),
    "data": Entry("weitune.cli.data.commands", "Look at dialogues as the model will see them."),
}
"""Every command in the order of ``weitune --help``; each module names it ``command``."""


class LazyGroup(click.Group):
    """A click group over :data:`COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(entry.module).command
        assert isinstance(command, click.Command)  # noqa: S101  (narrows the type for mypy)
        from weitune.cli.shared.localized import localized

        return localized(command, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` begin with; an unknown one names the nearest."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            if near:
                ctx.fail(say("cli.cli.no_such_command_but", name=name, near=near[0]))
            ctx.fail(say("cli.cli.no_such_command", name=name))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from weitune.cli.shared.localized import help_text

        with formatter.section("Commands"):
            formatter.write_dl([(n, help_text(f"{n}.summary") or entry.summary) for n, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--language", type=click.Choice(LANGUAGES), help="Language of messages; WEITUNE_LANG or LANG if not given."
)
@click.version_option(package_name="weitune", message="%(prog)s %(version)s")
def command_line(language: str | None) -> None:
    """Fine-tune chat models with LoRA, and talk to the result."""


def _in_language() -> click.Command:
    """Return :func:`command_line` in the user's language."""
    from weitune.cli.shared.localized import localized

    return localized(command_line, "weitune")


def split_language(arguments: Sequence[str]) -> tuple[Language | None, list[str]]:
    """Return what ``--language`` says, wherever it stands, and the other arguments.

    It is taken out before click reads the rest, since help and errors are told in it. A wrong one is left for click.
    """
    rest = list(arguments)
    end = rest.index("--") if "--" in rest else len(rest)
    for at, argument in enumerate(rest[:end]):
        name, _, value = argument.partition("=")
        given = [value] if value else rest[at + 1 : at + 2]
        if name == "--language" and given and given[0] in LANGUAGES:
            return given[0], [*rest[:at], *rest[at + (1 if value else 2) :]]
    return None, rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, print errors to standard error, and return the exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal's encoding lacks must not end a chat
            stream.reconfigure(errors="replace")
    watch_contention()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen, rest = split_language(arguments)
    choose_language(chosen)
    try:
        result = _in_language().main(args=rest, prog_name="weitune", standalone_mode=False, obj=arguments)
    except click.ClickException as error:
        from weitune.cli.shared.localized import show_error

        show_error(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:  # noqa: BLE001  (the one place where a bug of ours becomes an exit code)
        from weitune.cli.shared.terminal import print_bug, print_error

        told = error if isinstance(error, WeituneError) else refused_by_system(error)
        if told is None:
            print_bug()
            return 1
        print_error(told)
        return told.exit_code
    return result if isinstance(result, int) else 0
