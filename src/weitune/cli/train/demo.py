"""``weitune demo``: train a persona in a few minutes on a CPU; ask the model the same questions before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from weitune.messages import say
from weitune.shell import shell_command

if TYPE_CHECKING:
    from pathlib import Path

    from weitune.data.conversation import Conversation
    from weitune.generate.run import Run
    from weitune.generate.stream import Answer

QUESTIONS = {
    "captain-en": ("Who are you?", "What did you have for breakfast?", "Can you give me some advice?"),
    "storyteller-zh": ("你是谁？", "你早上吃了什么？", "能给我一点建议吗？"),
}
"""For each built-in persona, three questions that are not in its data."""


@click.command()
@click.option("--output", metavar="FOLDER", help="The run's folder.  [default: runs/smollm2-135m-<time>]")
@click.option("--questions", "ask_only", metavar="RUN", help="Only ask the questions, of this finished demo run.")
def command(output: str | None, ask_only: str | None) -> None:
    """Fine-tune a small model on a persona, and compare its answers with its base's.

    Needs no GPU and no model hub: SmolLM2-135M-Instruct comes out of a Python package (100 MB), the 105 dialogues with
    weitune.
    """
    from weitune.cli.shared.terminal import console, quiet_libraries

    quiet_libraries()
    from weitune.generate.run import Run

    run = Run(ask_only) if ask_only else _trained(output)
    answers = _asked(run)
    _print(answers)
    try:
        console().print(say("cli.demo.report", report=_add_to_report(run, answers)), markup=False)
    except OSError as error:  # the answers are on the screen
        console().print(say("cli.demo.report_not_updated", error=error), markup=False)
    console().print(say("cli.demo.talk", command=shell_command("chat", run.path)), markup=False)


def _trained(output: str | None) -> Run:
    from weitune.cli.train.training_view import TrainingView
    from weitune.recipe.load import load_recipe
    from weitune.training.run import train

    with TrainingView() as view:
        return train(load_recipe("demo", {"output": output}), reporter=view)


def _asked(run: Run) -> list[dict[str, str]]:
    from weitune.cli.shared.terminal import working
    from weitune.data.conversation import Conversation, Turn

    persona = run.recipe.data[0].removeprefix("builtin:")
    questions = QUESTIONS.get(persona, QUESTIONS["captain-en"])
    asked = [Conversation((Turn("user", question),)).with_system(run.recipe.system) for question in questions]
    with working(say("cli.demo.asking")):
        before, after = _answers_of_both(run, asked)
    return [
        {"question": question, "before": untuned.text, "after": tuned.text}
        for question, untuned, tuned in zip(questions, before, after, strict=True)
    ]


def _answers_of_both(run: Run, asked: list[Conversation]) -> tuple[list[Answer], list[Answer]]:
    """Return the answers of the base, whose weights are read once, and those with the adapter merged into them."""
    from weitune.generate.engine import Engine
    from weitune.generate.open_model import load_engine, merge_adapter
    from weitune.generate.sampling import Sampling
    from weitune.model.load.names import model_names

    files, adapter, sampling = run.base_files(), run.adapter_folder(), Sampling(max_new_tokens=60)
    assert adapter is not None  # noqa: S101  (for mypy: only the base has none)
    base = load_engine(run.recipe, None, files=files)
    before = base.answers(asked, sampling)
    tuned = Engine(merge_adapter(base.model, adapter, model_names(files)), base.tokenizer, base.framing, fixed=True)
    return before, tuned.answers(asked, sampling)


def _add_to_report(run: Run, answers: list[dict[str, str]]) -> Path:
    from weitune.files.json_files import json_bytes
    from weitune.files.publish import publish_bytes
    from weitune.report.run_report import write_report
    from weitune.run.names import ANSWERS

    publish_bytes(json_bytes({"step": run.adapter_step("last"), "answers": answers}, indent=1), run.path / ANSWERS)
    return write_report(run.path)


def _print(answers: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=say("cli.demo.title"), show_lines=True)
    table.add_column(say("cli.demo.question"), ratio=1)
    table.add_column(say("cli.demo.before"), ratio=2)
    table.add_column(say("cli.demo.after"), ratio=2)
    for answer in answers:
        table.add_row(*map(Text, answer.values()))
    Console().print(table)
