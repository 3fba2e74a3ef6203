"""``weitune data pair``: join two files of answers into pairs for preference tuning."""

from __future__ import annotations

from pathlib import Path

import click

from weitune.messages import say

_SHOWN = 5
"""Answers without a partner that are named."""


@click.command("pair", short_help="Join two files of answers into pairs.")
@click.option("--chosen", required=True, metavar="FILE", help="Dialogues that end with the better answers.")
@click.option("--rejected", required=True, metavar="FILE", help="Dialogues that end with the worse answers.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Where to write.")
@click.option("--drop-unmatched", is_flag=True, help="Leave out answers that have no partner.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def pair_command(chosen: str, rejected: str, output: Path, drop_unmatched: bool, force: bool) -> None:
    """Join the answers of two files that have the same prompt into pairs for preference tuning.

    The answers to a prompt are joined in order; a single one is joined with all of the other file's. Two answers with
    the same text make no pair.
    """
    from weitune.cli.shared.terminal import console
    from weitune.data.preference.join import join_answers
    from weitune.data.read.conversations import Reader, read_conversations
    from weitune.data.show.convert import write_file
    from weitune.errors import InputError

    joined = join_answers(*(list(read_conversations(Reader([file]))) for file in (chosen, rejected)))
    if joined.alone and not drop_unmatched:
        places = ", ".join(str(answered.origin) for answered in joined.alone[:_SHOWN])
        raise InputError("cli.pair.alone", count=len(joined.alone), places=places)
    if not joined.pairs:
        raise InputError("cli.pair.none", chosen=chosen, rejected=rejected, equal=joined.equal)
    pairs = write_file(joined.pairs, output, force=force)
    console().print(say("cli.pair.written", count=pairs, file=output), markup=False)
    if joined.equal:
        console().print(say("cli.pair.equal", count=joined.equal), markup=False)
    if joined.alone:
        console().print(say("cli.pair.dropped", count=len(joined.alone)), markup=False)
