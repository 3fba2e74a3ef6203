"""The part of a report about preferences: rewards and log-probabilities over the steps, and what they say."""

from __future__ import annotations

from weitune.messages import say
from weitune.report.chart import Line, chart
from weitune.report.markup import text
from weitune.report.page import section
from weitune.report.run_record import RunRecord
from weitune.report.trend import trend
from weitune.run.events import Validation
from weitune.run.preference_figures import ChosenAnswers


def preference_section(record: RunRecord) -> str:
    """Return the section, or nothing if the run did not learn from preferences."""
    chosen = ChosenAnswers()
    for event in record.events:
        chosen.add(event)
    note = chosen.note()
    charts = {
        say("report.preference_section.rewards"): ("rewards/chosen", "rewards/rejected", "rewards/margins"),
        say("report.preference_section.accuracies"): ("rewards/accuracies",),
        say("report.preference_section.log_probabilities"): ("logps/chosen", "logps/rejected"),
        say("report.preference_section.kl"): ("kl",),
    }
    drawn = "".join(
        chart(title, [line for colour, name in enumerate(names) for line in _lines(record, name, colour)])
        for title, names in charts.items()
    )
    return section(
        say("report.preference_section.title"),
        f"<p>{text(note)}</p>\n" if note else "",
        f'<div class="charts">{drawn}</div>\n' if drawn else "",
    )


def _lines(record: RunRecord, name: str, colour: int) -> list[Line]:
    """Return the curves of a figure: over the steps, and of held-out answers."""
    steps, held = record.figures(name), record.figures(name, Validation)
    held_name = say("report.preference_section.held_out", name=name)
    return [Line(name, trend(steps), colour=colour), Line(held_name, held, colour=colour, dash=1)]
