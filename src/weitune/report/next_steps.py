"""The commands that a report offers for its run."""

from __future__ import annotations

from weitune.report.run_record import RunRecord
from weitune.shell import shell_command


def next_commands(record: RunRecord) -> list[str]:
    """Return what to type next: talk to a finished run, go on with another."""
    words = ["chat"] if record.finished else ["train", "--resume"]
    return [shell_command(*words, record.path)]


def later_commands(record: RunRecord) -> list[str]:
    """Return what else to do with a run."""
    folder = record.path
    judged = [] if record.evaluation is None else [shell_command("eval", folder)]
    export = shell_command("export", folder, "--format", "merged", "--output", folder / "merged")
    return [*judged, export, shell_command("serve", folder)]
