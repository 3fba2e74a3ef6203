"""The first screen of a report: did it work, is it good, what did it cost, where are the answers, what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from weitune.errors import InputError
from weitune.evaluate.evaluation import Evaluation, Gate, ModelScores
from weitune.evaluate.figures import described, points
from weitune.evaluate.gate import Bounds, judge_bounds
from weitune.messages import joined, say
from weitune.messages.quantities import duration_text
from weitune.messages.translate import translated
from weitune.recipe.preference import Preference
from weitune.report.before_after import before_and_after, of_earlier
from weitune.report.markup import prose, text
from weitune.report.next_steps import evaluation_command, next_commands
from weitune.report.page import State, commands
from weitune.report.run_record import RunRecord
from weitune.report.trend import trend
from weitune.run.events import Step, Validation
from weitune.run.history import finite

_RISE = 0.02
"""By how much of the best validation loss the last one must be higher for a word about it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question, in sentences."""

    question: str
    sentences: Sequence[str]
    state: State
    html: str = ""
    """What follows the sentences, such as commands."""


def verdict(record: RunRecord) -> str:
    """Return the findings about a run."""
    shown = before_and_after(record)
    last = say("report.verdict.answers_below" if shown else "report.verdict.no_answers")
    link = f'<p><a href="#answers">{text(say("report.verdict.to_answers"))}</a></p>' if shown else ""
    found = [
        _worked(record),
        _good(record),
        _cost(record),
        Finding(say("report.verdict.where"), [last], "", link),
        Finding(say("report.verdict.next"), [], "", commands(next_commands(record))),
    ]
    return _html(found)


def evaluation_verdict(evaluation: Evaluation) -> str:
    """Return the findings about an evaluation of a model that has no run of ours."""
    good, state = _judged(evaluation)
    found = [_costs(evaluation)]
    if good:
        found.insert(0, Finding(say("report.verdict.good"), good, state))
    return _html(found)


def _html(findings: Sequence[Finding]) -> str:
    rows = []
    for finding in findings:
        said = "".join(f"<p>{prose(sentence)}</p>" for sentence in finding.sentences)
        kind = f' class="{finding.state}"' if finding.state else ""
        rows.append(f"<div{kind}><dt>{text(finding.question)}</dt><dd>{said}{finding.html}</dd></div>\n")
    return f'<dl class="findings">{"".join(rows)}</dl>\n'


def _worked(record: RunRecord) -> Finding:
    question, steps = say("report.verdict.worked"), record.of_kind(Step)
    seconds = sum(finite(event.step_seconds) or 0.0 for event in steps)
    model = record.recipe.model.rstrip("/").rpartition("/")[2].removeprefix("builtin:")
    values = {"model": model, "steps": len(steps), "time": duration_text(seconds)}
    if record.finished:
        if rows := _learned_rows(record, len(steps)):
            return Finding(question, [say("report.verdict.learned_rows", count=rows, **values)], "good")
        return Finding(question, [say("report.verdict.learned", **values)], "good")
    planned = record.planned
    done = say("report.run_report.steps_of", done=len(steps), steps="?" if planned is None else planned)
    if record.stopped_by:
        reason = translated(record.stopped_by, "training")
        return Finding(question, [say("report.verdict.stopped", reason=reason, steps=done)], "bad")
    if record.not_finite:
        return Finding(question, [say("report.verdict.not_finite", steps=done)], "bad")
    return Finding(question, [say("report.verdict.unfinished", steps=done)], "open")


def _learned_rows(record: RunRecord, steps: int) -> int:
    """Return the number of rows that were learned from in ``steps`` steps, 0 if it is not known.

    A share of the examples may be held out, and a run may end before it has seen all of them; a row may make several.
    """
    if record.data is None:
        return 0
    held = record.data.validation if isinstance(record.recipe.validation, float) else None
    rows, kept = record.data.report.rows.trained, record.data.report.examples.kept
    seen = steps * record.recipe.train.batch_size
    if kept != rows:
        return rows if held is None and seen >= kept else 0
    return min(max(0, rows - (held.examples if held else 0)), seen)


def _good(record: RunRecord) -> Finding:
    question = say("report.verdict.good")
    if shares := record.figures("rewards/accuracies", Validation):
        return _preferred(record.recipe.preference, shares)
    losses = record.series("loss", Validation)
    if record.best is not None and losses[0][0] < record.best[0]:
        return Finding(question, [*_held_out(record)], "good" if record.best[1] < losses[0][1] else "bad")
    if record.evaluation is not None:
        said, state = _judged(record.evaluation)
        if said:
            return Finding(question, [*said, *of_earlier(record)], state)
    steps = trend(record.series("loss"))  # as the tiles have it
    if len(steps) < 2:
        return Finding(question, [say("report.verdict.unknown")], "open")
    fell = say("report.verdict.training_loss", first=steps[0][1], last=steps[-1][1])
    held_out = record.recipe.validation is not None
    more = say("report.verdict.not_measured_since" if held_out else "report.verdict.nothing_held_out")
    return Finding(question, [fell, more], "open")


def _preferred(preference: Preference | None, shares: Sequence[tuple[float, float]]) -> Finding:
    """Return what (step, share) of held-out pairs or judged answers that are on the right side says."""
    (start, first), (_, last) = shares[0], shares[-1]
    pairs, compared = preference is None or preference.needs_pairs, preference is None or preference.has_reference
    said = [say("report.verdict.pairs" if pairs else "report.verdict.judged", share=last)]
    better = last > 0.5
    if start == 0 and not compared:  # with a reference, all rewards are 0 then
        said.append(say("report.verdict.pairs_before", first=first))
        better = better and last > first
    return Finding(say("report.verdict.good"), said, "good" if better else "bad")


def _held_out(record: RunRecord) -> Iterator[str]:
    """Yield sentences about the validation losses of ``record``: of the first one, the best and the last."""
    losses, best = record.series("loss", Validation), record.best
    assert best is not None  # noqa: S101 (the caller has looked)
    step, lowest = best
    fell = "report.verdict.held_out_fell" if lowest < losses[0][1] else "report.verdict.held_out_rose"
    yield say(fell, first=losses[0][1], best=lowest, step=step)
    if losses[-1][1] > lowest * (1 + _RISE):
        yield say("report.verdict.rose_again", last=losses[-1][1], step=int(losses[-1][0]))
        chosen = next((end.adapter_step for end in reversed(record.turns("end"))), None)
        if chosen == step:
            yield say("report.verdict.adapter_is_best", step=step)
        elif chosen is not None:
            yield say("report.verdict.adapter_is_not_best", step=chosen)


def _judged(evaluation: Evaluation) -> tuple[list[str], State]:
    """Return what an evaluation says about held-out rows."""
    if (found := evaluation.judged) is None:
        return [], ""
    base, tuned = found
    if base.loss is None or tuned.loss is None:
        return [], ""
    fell = tuned.loss < base.loss
    message = "report.verdict.evaluated_fell" if fell else "report.verdict.evaluated_rose"
    name = translated(evaluation.rows.name, "evaluate")
    return [say(message, name=name, base=base.loss, tuned=tuned.loss)], "good" if fell else "bad"


def _cost(record: RunRecord) -> Finding:
    if record.evaluation is not None and record.evaluation.judged:
        found = _costs(record.evaluation)
        return replace(found, sentences=[*found.sentences, *of_earlier(record)])
    ask = commands([evaluation_command(record, "--gate")]) if record.finished else ""
    said = say("report.verdict.cost_unknown" if ask else "report.verdict.cost_not_finished")
    return Finding(say("report.verdict.cost"), [said], "open", ask)


def _costs(evaluation: Evaluation) -> Finding:
    """Return what general questions and the bounds of ``--gate`` say about a tuned model."""
    question, found = say("report.verdict.cost"), evaluation.judged
    if found is None or found[0].general is None or found[1].general is None:
        return Finding(question, [say("report.verdict.cost_not_asked")], "open")
    base, tuned = found
    said, fallen = [], False
    for language, before in found[0].general.right.items():
        after, change = found[1].general.right[language], found[1].general.change.get(language)
        said.append(say("report.verdict.general", language=language, before=before, after=after))
        if change is not None:
            lost = change.high < 0
            fallen |= lost
            word = "report.verdict.beyond_chance" if lost else "report.verdict.within_chance"
            said[-1] = joined("", [said[-1], say(word, change=points(change))])
    gate = evaluation.gate or _default_gate(base, tuned)
    if gate is None:
        return Finding(question, said, "bad" if fallen else "good")
    broken = [described(check) for check in gate.checks if not check.passed]
    said.append(say("report.verdict.bounds_broken", count=len(broken)) if broken else say("report.verdict.bounds_kept"))
    return Finding(question, [*said, *broken], "bad" if broken or fallen else "good")


def _default_gate(base: ModelScores, tuned: ModelScores) -> Gate | None:
    try:
        return judge_bounds(base, [tuned], Bounds())
    except InputError:  # answers were not measured
        return None
