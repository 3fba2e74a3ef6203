"""``weitune eval``: the tuned model beside its base, on rows that it was not trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from weitune.cli.look.gate import gate_options, raise_if_failed
from weitune.cli.shared.open_runs import opened
from weitune.cli.shared.options import (
    accept_changed_base_option,
    adapter_base_option,
    adapter_system_option,
    checkpoint_option,
    json_option,
)
from weitune.cli.shared.schema_options import schema_from, schema_options
from weitune.cli.shared.status import status_options, tell
from weitune.messages import say
from weitune.progress import enter_phase

if TYPE_CHECKING:
    from weitune.evaluate.evaluation import Evaluation
    from weitune.evaluate.gate import Bounds
    from weitune.generate.run import Run
    from weitune.run.run_folder import Which


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data", "files", multiple=True, metavar="FILE", help="Rows to judge by, instead of the validation rows."
)
@checkpoint_option("last", "best", "all", help="The adapter to judge; `all` judges every checkpoint there is.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Questions that are answered.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Answers made together.")
@click.option("--general/--no-general", default=True, show_default=True, help="Check what was forgotten.")
@click.option(
    "--training-rows", type=click.IntRange(0), default=50, show_default=True, help="Check what was learned by heart."
)
@schema_options
@gate_options
@click.option("--judge", metavar="URL", help="OpenAI-compatible endpoint that compares the answers, ending with /v1.")
@click.option("--judge-model", metavar="NAME", default="default", show_default=True, help="Its model.")
@click.option("--judge-key", metavar="KEY", envvar="OPENAI_API_KEY", help="Its key.  [default: $OPENAI_API_KEY]")
@click.option("--device", metavar="DEVICE", help="Where to compute, such as cpu or cuda:1; if not given, the best.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where evaluation.json and report.html go.  [default: RUN; nowhere for an adapter that was made elsewhere]",
)
@adapter_base_option
@adapter_system_option
@accept_changed_base_option
@json_option
@status_options(json=False)
def command(
    run: Path,
    files: tuple[str, ...],
    checkpoint: Any,
    limit: int,
    judge: str | None,
    judge_model: str,
    judge_key: str | None,
    output: Path | None,
    model: str | None,
    system: str | None,
    accept_changed_base: bool,
    as_json: bool,
    training_rows: int,
    bounds: Bounds | None,
    schema_file: Path | None,
    json_object: bool,
    **options: Any,
) -> None:
    """Judge the model of RUN beside its base.

    Loss and perplexity on all rows; chrF, BLEU, ROUGE-L and more on answers; a check for forgetting. Results go into
    RUN/evaluation.json and RUN/report.html. With --gate, a model that forgot or repeats itself fails a pipeline.

    RUN may also be the folder of an adapter that was made elsewhere, as PEFT writes it; its rows come from --data.
    """
    if output is not None and output.exists() and not output.is_dir():
        raise click.BadParameter(say("cli.eval.not_a_folder", output=output), param_hint="--output")
    schema = schema_from({"schema_file": schema_file, "json_object": json_object})
    folder = opened([run], model=model, system=system, accept_changed_base=accept_changed_base)(run)
    which, target = _checkpoints(folder, checkpoint), output or (None if folder.made_elsewhere else run)

    from weitune.cli.shared.terminal import Stages, console, quiet_libraries, working

    with working(say("cli.eval.starting")):
        quiet_libraries()
        from weitune.errors import InputError
        from weitune.evaluate.evaluation_set import evaluation_set
        from weitune.evaluate.judge import ask_endpoint, judge_answers
        from weitune.evaluate.run_evaluation import Options, evaluate, unmeasured

        ask = ask_endpoint(judge, judge_model, judge_key) if judge else None
        rows = evaluation_set(folder, files, limit, training_rows)
        if judge and not rows.questions:
            raise InputError("evaluate.judge.no_questions", name=rows.name)
    with Stages("evaluating") as stages:
        evaluation = evaluate(folder, rows, which, Options(**options, schema=schema), stages.begin, bounds)
        if ask is not None:
            if target:
                _write(evaluation, target)  # a judge may fail, hours later
            judged = judge_answers(evaluation, ask, judge_model, stages.begin(say("cli.eval.judging")))
            evaluation = replace(evaluation, win_rate=judged)
    _show(evaluation, as_json=as_json)
    for line in filter(None, (rows.changed, unmeasured(rows, evaluation))):
        console().print(line, markup=False)
    if target:
        enter_phase("writing")
        tell(folder=str(target))
        console().print(say("cli.eval.written", written=_written(folder, evaluation, target)), markup=False)
    raise_if_failed(evaluation)


def _checkpoints(folder: Run, checkpoint: Which | Literal["all"]) -> list[Which]:
    """Return the adapters to judge. Raises RunError if one of them is not there, before the libraries load."""
    every: list[Which] = [*folder.checkpoints()] or ["last"]
    which = every if checkpoint == "all" else [checkpoint]
    for each in which:
        folder.adapter_folder(each)
    return which


def _show(evaluation: Evaluation, *, as_json: bool) -> None:
    if as_json:
        from weitune.files.json_files import json_bytes

        click.echo(json_bytes(evaluation.to_json(), indent=1), nl=False)
    else:
        from weitune.cli.look.eval_view import print_evaluation

        print_evaluation(evaluation)


def _write(evaluation: Evaluation, target: Path) -> None:
    from weitune.errors import InputError

    try:
        target.mkdir(parents=True, exist_ok=True)
        evaluation.write(target)
    except OSError as error:
        raise InputError("cli.eval.not_written", target=target, strerror=error.strerror or error) from None


def _written(folder: Run, evaluation: Evaluation, target: Path) -> Path:
    from weitune.errors import InputError
    from weitune.report.run_report import write_evaluation_report, write_report

    _write(evaluation, target)
    try:
        if target.resolve() == folder.path.resolve() and not folder.made_elsewhere:
            return write_report(target)
        return write_evaluation_report(target, folder.name, folder.recipe.model, evaluation)
    except OSError as error:
        raise InputError("cli.eval.not_written", target=target, strerror=error.strerror or error) from None
