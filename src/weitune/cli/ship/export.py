"""``weitune export``: a run in the form that other programs take, compared with what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from weitune.cli.shared.open_runs import opened
from weitune.cli.shared.options import (
    accept_changed_base_option,
    adapter_base_option,
    adapter_option,
    adapter_system_option,
    gguf_type_option,
)
from weitune.cli.shared.status import status_options, tell
from weitune.export.options import FORMATS, ExportOptions, Format
from weitune.gguf.types import GgufType
from weitune.messages import say

if TYPE_CHECKING:
    from weitune.export.verify.compare import Verdict
    from weitune.run.run_folder import Which

_DTYPES = ("float32", "float16", "bfloat16")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write.  [default: RUN/export/FORMAT; for an adapter that was made elsewhere, "
    "export/NAME/FORMAT below the working directory]",
)
@adapter_option(not_base="cli.export.base_has_no_adapter")
@gguf_type_option(help="Type of the matrices in a GGUF file.")
@click.option("--dtype", type=click.Choice(_DTYPES), help="Number format of `merged`.  [default: the base's]")
@click.option("--prompts", type=click.IntRange(1), default=8, show_default=True, help="Dialogues to compare on.")
@click.option("--no-smooth", is_flag=True, help="Quantize channels as they are, without evening them out first.")
@click.option("--no-verify", is_flag=True, help="Do not compare the export with base + adapter.")
@click.option("--force", is_flag=True, help="Replace an earlier export in the same folder.")
@adapter_base_option
@adapter_system_option
@accept_changed_base_option
@status_options()
def command(
    run: Path,
    format_: Format,
    output: Path | None,
    gguf_type: GgufType,
    dtype: str | None,
    prompts: int,
    no_smooth: bool,
    no_verify: bool,
    force: bool,
    checkpoint: Which,
    model: str | None,
    system: str | None,
    accept_changed_base: bool,
) -> None:
    """Export the run in the folder RUN, and prove that the result says what was trained.

    RUN may also be the folder of an adapter that was made elsewhere, as PEFT writes it.

    \b
      merged        a model folder for transformers and vLLM
      gguf          one file for llama.cpp; takes --type
      gguf-adapter  the adapter alone, for a GGUF file of the base
      ollama        a GGUF file and a Modelfile for `ollama create`; takes --type

    The export is opened by the engine it is for and compared with base + adapter on dialogues of the run's data: prompt
    tokens, greedy answers, log-probabilities and stopping. If they differ by more than the format's bounds, that is an
    error, and what was written is kept as NAME.failed.
    """
    folder = opened([run], model=model, system=system, accept_changed_base=accept_changed_base)(run)
    below = Path("export") / folder.name if folder.made_elsewhere else folder.path / "export"
    target = output or below / (format_ if format_ != "gguf" else f"gguf-{gguf_type.lower()}")

    from weitune.cli.shared.terminal import Stages, console, quiet_libraries, working

    with working(say("cli.export.starting")):  # importing the libraries takes seconds
        quiet_libraries()
        import torch

        from weitune.export.run import export
        from weitune.export.verify.compare import VerificationError

    number_format = getattr(torch, dtype) if dtype else None
    options = ExportOptions(format_, gguf_type, number_format, 0 if no_verify else prompts, not no_smooth)
    with Stages() as stages:
        try:
            exported = export(folder, target, options, checkpoint=checkpoint, force=force, stage=stages.begin)
        except VerificationError as error:
            stages.end()
            _show(error.verdict)
            raise
    tell(folder=str(exported.folder))
    if exported.verdict is not None:
        _show(exported.verdict)
    if exported.notes:
        tell(notes=list(exported.notes))
        for note in exported.notes:
            console().print(say("cli.export.note", note=note), markup=False)
    console().print(say("cli.export.done", folder=exported.folder), markup=False)


def _show(verdict: Verdict) -> None:
    from weitune.cli.shared.terminal import console

    tell(verification=verdict.to_json())
    lines = [say("cli.export.compared", engine=verdict.engine, prompts=verdict.prompts)]
    for check in verdict.checks:
        if check.passed:
            lines.append(say("cli.export.passed", name=check.name, detail=check.found))
        else:
            lines.append(say("cli.export.failed", name=check.name, detail=check.found))
    lines += [say("cli.export.note", note=note) for note in verdict.notes]
    for line in lines:
        console().print(line, markup=False)
