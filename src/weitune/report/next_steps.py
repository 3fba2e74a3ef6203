"""The commands that a report offers for its run."""

from __future__ import annotations

from weitune.report.run_record import RunRecord
from weitune.run.names import RECIPE
from weitune.shell import shell_command


def next_commands(record: RunRecord) -> list[str]:
    """Return what to type next: talk to a finished run, go on with another."""
    if record.not_finite:  # resuming would come to the same numbers
        return [another_run(record)]
    words = ["chat"] if record.finished else ["train", "--resume"]
    return [shell_command(*words, record.path)]


def another_run(record: RunRecord) -> str:
    """Return how to train with the recipe of a run once more."""
    return shell_command("train", record.path / RECIPE, "--output", "ANOTHER-FOLDER")


def evaluation_command(record: RunRecord, *options: str) -> str:
    """Return how to evaluate a run; one that held nothing out must be given rows."""
    rows = [] if record.recipe.validation is not None else ["--data", "ROWS.jsonl"]
    return shell_command("eval", record.path, *options, *rows)


def later_commands(record: RunRecord) -> list[str]:
    """Return what else to do with a run."""
    folder = record.path
    judged = [] if record.evaluation is None else [evaluation_command(record)]
    if record.recipe.adapter is None:  # a whole model is neither exported nor served
        return judged
    export = shell_command("export", folder, "--format", "merged", "--output", folder / "merged")
    return [*judged, export, shell_command("serve", folder)]
