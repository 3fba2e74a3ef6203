"""``weitune data answer``: have the rows of a file answered by a base, a run or an endpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weitune.cli.data.options import NO_MODEL, reading_options, recipe_of
from weitune.cli.shared.open_runs import opened
from weitune.cli.shared.options import accept_changed_base_option, checkpoint_option
from weitune.cli.shared.sampling_options import sampling_from, sampling_options
from weitune.cli.shared.schema_options import schema_from, schema_options
from weitune.cli.shared.status import status_options, tell
from weitune.messages import say
from weitune.progress import enter_phase

if TYPE_CHECKING:
    from weitune.generate.batch.answer_rows import Outcome
    from weitune.generate.batch.answerers import Answerer
    from weitune.recipe.schema import Recipe

_OF_BASE = ("hub", "revision", "tokens.template", "tokens.template_args", "train.precision")
"""Keys that are a run's own."""


@click.command("answer", short_help="Have the rows of a file answered.")
@reading_options("columns", "format", "encoding", "system", "model", *_OF_BASE)
@click.option("--run", type=click.Path(path_type=Path), metavar="RUN", help="Answer with the model of a run.")
@checkpoint_option("last", "best", "base", help="The run's adapter of step N, the last one, the best one, or none.")
@click.option("--url", metavar="URL", help="Ask the server there; --model is then the name of a model it has.")
@click.option("--api-key", metavar="KEY", envvar="WEITUNE_API_KEY", show_envvar=True, help="The server's key.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Answers to each row.")
@sampling_options
@schema_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Answer only the first N rows.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Answers made together.")
@click.option("--drop-unfinished", is_flag=True, help="Leave out answers that were cut at --max-new-tokens.")
@click.option("--device", metavar="DEVICE", help="Where to compute, such as cpu or cuda:1; if not given, the best.")
@accept_changed_base_option
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Where to write.")
@click.option("--force", is_flag=True, help="Overwrite an existing file, and begin anew under other settings.")
@status_options()
def answer_command(files: tuple[str, ...], recipe_file: str | None, output: Path, force: bool, **options: Any) -> None:
    """Have rows answered by --model, --run or --url, and write them as `messages` JSON Lines, in their order.

    Rows are dialogues in any format, whose last answer is dropped, or prompts alone: {"prompt": "…"}. FILES may also
    be builtin:prompts-en and builtin:prompts-zh, which ship with weitune. --system is what rows without a system
    prompt are answered under; it is not written. A command that was killed goes on where it stopped when it is given
    again. With --seed, answer n (from 0) is drawn with seed + n.
    """
    recipe = recipe_of(files, recipe_file, options)
    _check(recipe, options)
    sampling = sampling_from(options)
    schema = schema_from(options, here=options["url"] is None)

    from weitune.cli.shared.terminal import console, progress, quiet_libraries, working

    with working(say("cli.answer.starting")):
        if options["url"] is None:
            quiet_libraries()
        from weitune.data.prepare.recipe_reader import read_options
        from weitune.generate.batch.answer_rows import Request, answer_rows, asked_rows

        enter_phase("reading")
        asked = asked_rows(recipe.data, read_options(recipe))[: options["limit"]]
        answerer, system = _answerer(recipe, options)
    request = Request(sampling, system, options["samples"], options["drop_unfinished"], schema)
    enter_phase("writing")
    try:
        with progress(say("cli.answer.answering"), unit="answer") as bar:

            def told(done: int, total: int | None) -> None:
                enter_phase("writing")  # again: the model is loaded for the first answer
                bar.update(done, total)

            outcome = answer_rows(asked, answerer, request, output, told, force=force)
    except KeyboardInterrupt:
        console().print(say("cli.answer.stopped"))
        raise
    tell(file=str(output), **asdict(outcome))
    for line in _told(outcome, output):
        console().print(line, markup=False)


def _check(recipe: Recipe, options: dict[str, Any]) -> None:
    """Raise click.UsageError unless the options name one thing that answers, and only options that it takes."""
    run, url = options["run"], options["url"]
    if (run is not None and url is not None) or (run is None and url is None and recipe.model == NO_MODEL):
        raise click.UsageError(say("cli.answer.who_answers"))
    names = {name.replace(".", "__"): f"--{name}" for name in _OF_BASE} if run or url else {}
    names |= {} if run else {"checkpoint": "--checkpoint", "accept_changed_base": "--accept-changed-base"}
    for name, option in names.items():
        if _is_given(name):
            raise click.UsageError(say("cli.answer.not_with", option=option))


def _is_given(name: str) -> bool:
    """Return whether the option with this parameter's ``name`` is on the command line."""
    return click.get_current_context().get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _answerer(recipe: Recipe, options: dict[str, Any]) -> tuple[Answerer, str | None]:
    """Return what answers, and the system prompt for rows without their own: that of the run unless one is given."""
    from weitune.generate.batch.answerers import RemoteAnswerer, base_answerer, run_answerer
    from weitune.generate.plain_adapter import is_plain_adapter

    model = None if recipe.model == NO_MODEL else recipe.model
    given = recipe.system or None  # an empty one asks for none
    if options["url"] is not None:
        from weitune.generate.remote import engine_on_server

        engine = engine_on_server(options["url"], model if _is_given("model") else None, options["api_key"])
        return RemoteAnswerer(engine, options["batch_size"]), given
    if options["run"] is None:
        return base_answerer(recipe, options["batch_size"], options["device"]), given
    model = model if _is_given("model") or is_plain_adapter(options["run"]) else None
    run = opened([options["run"]], model=model, accept_changed_base=options["accept_changed_base"])(options["run"])
    system = run.recipe.system if recipe.system is None else given
    return run_answerer(run, options["checkpoint"], options["batch_size"], options["device"]), system


def _told(outcome: Outcome, output: Path) -> list[str]:
    """Return the lines that say what was written and what was not."""
    lines = [say("cli.answer.written", count=outcome.written, file=output)]
    for message_id, count in (
        ("cli.answer.found", outcome.found),
        ("cli.answer.unfinished", outcome.unfinished),
        ("cli.answer.blank", outcome.blank),
        ("cli.answer.too_long", outcome.too_long),
    ):
        lines += [say(message_id, count=count)] if count else []
    return lines
