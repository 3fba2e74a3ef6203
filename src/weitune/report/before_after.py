"""The part of a report that people look at first: the same questions, answered before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weitune.evaluate.evaluation import AnsweredQuestion, Evaluation
from weitune.messages import say
from weitune.report.evaluation_section import model_name
from weitune.report.markup import prose
from weitune.report.page import folded, section, table
from weitune.report.run_record import RunRecord
from weitune.run.events import SampleAnswer, Validation

SHOWN = 3
"""Questions that are not folded."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answers before and after training, and that of the data."""

    question: str
    before: str
    after: str
    reference: str | None = None


def before_and_after(record: RunRecord) -> list[Asked]:
    """Return questions that were asked before and after: by the demo, by an evaluation, or during training."""
    if record.answers:
        return [Asked(*(str(each.get(key, "")) for key in ("question", "before", "after"))) for each in record.answers]
    return _evaluated(record.evaluation) or _sampled(record)


def are_of_validations(record: RunRecord) -> bool:
    """Return whether the answers before and after are those of the first validation and of the last."""
    return not record.answers and not _evaluated(record.evaluation) and bool(_sampled(record))


def answers_section(record: RunRecord) -> str:
    """Return the section about a run: some answers at once, and the others, also those of an evaluation, folded."""
    asked, elsewhere = before_and_after(record), bool(record.answers)
    return _section(asked, record.evaluation, asked_elsewhere=elsewhere, notes=of_earlier(record))


def of_earlier(record: RunRecord) -> list[str]:
    """Return a sentence if the evaluation is of an adapter that the run has left behind."""
    if (steps := record.evaluated_earlier) is None:
        return []
    return [say("report.before_after.of_earlier", measured=steps[0], now=steps[1])]


def evaluated_answers(evaluation: Evaluation) -> str:
    """Return the section of an evaluation without a run."""
    return _section(_evaluated(evaluation), evaluation, asked_elsewhere=False)


def _section(
    asked: Sequence[Asked], evaluation: Evaluation | None, *, asked_elsewhere: bool, notes: Sequence[str] = ()
) -> str:
    """Return the section with ``notes``; ``asked_elsewhere``: the questions are not those of the evaluation."""
    start = 0 if asked_elsewhere else SHOWN
    answered = evaluation.answers[start:] if evaluation is not None else ()
    more = say("report.before_after.more" if start else "report.before_after.evaluated", count=len(answered))
    return section(
        say("report.run_report.before_and_after"),
        "".join(f"<p>{prose(note)}</p>\n" for note in notes),
        _table(asked[:SHOWN] if answered and start else asked),
        folded(more, _of_models(answered, evaluation)) if evaluation and answered else "",
        _general(evaluation) if evaluation is not None else "",
        anchor="answers",
    )


def _table(asked: Sequence[Asked]) -> str:
    heads = [say("report.run_report.question"), say("report.run_report.before"), say("report.run_report.after")]
    if not any(each.reference for each in asked):
        return table(heads, [[each.question, each.before, each.after] for each in asked], said=True)
    heads.insert(1, say("report.run_report.reference"))
    return table(heads, [[a.question, a.reference or "", a.before, a.after] for a in asked], said=True)


def _of_models(answered: Sequence[AnsweredQuestion], evaluation: Evaluation) -> str:
    names = [model.which for model in evaluation.models]
    called = map(model_name, names)
    heads = [say("report.evaluation_section.question"), say("report.evaluation_section.data"), *called]
    rows = [[each.prompt, each.reference or "", *(each.said.get(name, "") for name in names)] for each in answered]
    return table(heads, rows, said=True)


def _general(evaluation: Evaluation) -> str:
    names = [model.which for model in evaluation.models]
    rows = [[each.prompt, *(each.said.get(name, "") for name in names)] for each in evaluation.general]
    title = say("report.before_after.general", count=len(rows))
    return folded(title, table([say("report.evaluation_section.question"), *map(model_name, names)], rows, said=True))


def _evaluated(evaluation: Evaluation | None) -> list[Asked]:
    """Return what the base and the last of the tuned models said."""
    if evaluation is None:
        return []
    tuned = [model.which for model in evaluation.models if model.which != "base"]
    if not tuned:
        return []
    return [
        Asked(each.prompt, each.said.get("base", ""), each.said.get(tuned[-1], ""), each.reference)
        for each in evaluation.answers
    ]


def _sampled(record: RunRecord) -> list[Asked]:
    """Return what the model said to the questions of the validations before the first step and after the last."""
    sampled = [event for event in record.of_kind(Validation) if event.samples]
    if len(sampled) < 2 or sampled[0].step != 0:
        return []
    last = {sample.prompt: sample for sample in sampled[-1].samples or ()}
    return [
        Asked(str(first.prompt), said(first), said(last[first.prompt]), first.reference)
        for first in sampled[0].samples or ()
        if first.prompt in last
    ]


def said(sample: SampleAnswer) -> str:
    """Return an answer; an ellipsis marks one that was cut at its longest length."""
    return f"{sample.answer or ''}{'' if sample.stopped else ' …'}"
