"""``weitune push``: an adapter and its model card, on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weitune.cli.shared.open_runs import note
from weitune.cli.shared.options import accept_changed_base_option, adapter_option
from weitune.messages import say


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "repository", metavar="USER/NAME", required=True, help="The repository; it is made if need be.")
@click.option(
    "--hub",
    type=click.Choice(["huggingface", "modelscope"]),
    default="huggingface",
    show_default=True,
    help="Where to upload to.",
)
@adapter_option(not_base="cli.push.base_has_no_adapter")
@click.option(
    "--public",
    is_flag=True,
    help="Publish: make a new repository public, or push to a public one; without this, only you can see it.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write.  [default: RUN/export/repository]")
@click.option("--dry-run", is_flag=True, help="Write the folder, and upload nothing.")
@accept_changed_base_option
def command(
    run: Path,
    repository: str,
    hub: Any,
    checkpoint: Any,
    public: bool,
    output: Path | None,
    dry_run: bool,
    accept_changed_base: bool,
) -> None:
    """Upload the adapter of the run in the folder RUN, with a model card written from what the run recorded.

    The card accounts for the data, and has the recipe, the losses, the licence of the base and how to use the adapter.
    Look at it with --dry-run first; your data are not uploaded.
    """
    from weitune.cli.shared.terminal import console, quiet_libraries, working
    from weitune.generate.run import Run

    folder = Run(run, accept_changed_base=accept_changed_base, say=note)
    target = output or folder.path / "export" / "repository"
    with working(say("cli.push.writing")):
        quiet_libraries()
        from weitune.export.hub.push import upload, write_repository

        write_repository(folder, target, repository, checkpoint=checkpoint)
    console().print(say("cli.push.written", target=target), markup=False)
    if dry_run:
        return
    with working(say("cli.push.uploading")):
        page = upload(target, repository, hub=hub, private=not public)
    console().print(say("cli.push.done", page=page), markup=False)
