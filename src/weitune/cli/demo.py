"""``weitune demo``: the whole line in a few minutes on a CPU, and the same questions to the model before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from weitune.shell import shell_command

if TYPE_CHECKING:
    from weitune.generate.run_folder import Run

QUESTIONS = {
    "captain-en": ("Who are you?", "What did you have for breakfast?", "Can you give me some advice?"),
    "storyteller-zh": ("你是谁？", "你早上吃了什么？", "能给我一点建议吗？"),
}
"""For each persona that ships with weitune, three questions that do not stand in its data."""


@click.command()
@click.option("--output", metavar="FOLDER", help="The run's folder.  [default: runs/smollm2-135m-<time>]")
@click.option("--questions", "ask_only", metavar="RUN", help="Only ask the questions, of this finished demo run.")
def command(output: str | None, ask_only: str | None) -> None:
    """Fine-tune a small model on a persona, and compare its answers with its base's.

    Needs no GPU and no model hub: SmolLM2-135M-Instruct comes out of a Python package (100 MB), the 105 dialogues with
    weitune.
    """
    from weitune.cli.terminal import console, quiet_libraries

    quiet_libraries()
    run = _finished(ask_only) if ask_only else _trained(output)
    _compare(run)
    console().print(f"\ntalk to it:  {shell_command('chat', run.path)}", markup=False)


def _finished(folder: str) -> Run:
    from weitune.generate.run_folder import Run

    return Run(folder)


def _trained(output: str | None) -> Run:
    from weitune.cli.training_view import TrainingView
    from weitune.recipe.load import load_recipe
    from weitune.training.run import train

    with TrainingView() as view:
        return train(load_recipe("demo", {"output": output}), reporter=view)


def _compare(run: Run) -> None:
    """Print the persona's questions with the base's and the tuned model's answers side by side."""
    from rich.console import Console
    from rich.table import Table

    from weitune.cli.terminal import working

    persona = run.recipe.data[0].removeprefix("builtin:")
    questions = QUESTIONS.get(persona, QUESTIONS["captain-en"])
    table = Table(title="The same questions before and after", show_lines=True)
    for heading in ("question", "before", "after"):
        table.add_column(heading, ratio=1 if heading == "question" else 2)
    with working("asking …"):
        for question in questions:
            before, after = (run.chat(question, checkpoint=which, max_new_tokens=60) for which in ("base", "last"))
            table.add_row(question, before, after)
    Console().print(table)
