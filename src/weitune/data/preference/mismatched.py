"""Mismatched answers: the prompt of each group with the answer of the next one (KTO, arXiv 2402.01306, section 4.1).

    step      P1 A1 · P2 A2 · P3 A3        mismatched      P1 A2 · P2 A3 · P3 A1

KTO compares answers with the mean reward of such answers, which belong to no prompt: an estimate of how far the model
has moved away from its reference at all. A group alone in its step has no other answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from weitune.data.conversation import Example
from weitune.data.preference.values import Group
from weitune.data.schedule import Plan


def mismatched(groups: Sequence[Group], max_length: int) -> list[Group]:
    """Return the mismatched groups of a step's judged ``groups``, in order; none if there are fewer than two.

    An answer is cut where prompt and answer would have more than ``max_length`` tokens, though never before its first
    token.
    """
    if len(groups) < 2:
        return []
    return [_with_answer_of(group, groups[(k + 1) % len(groups)], max_length) for k, group in enumerate(groups)]


def first_mismatched(plan: Plan, step: int) -> int:
    """Return how many mismatched groups the steps of ``plan`` before ``step`` have."""
    epochs, within = divmod(step, plan.steps_per_epoch)
    if plan.batch_size < 2:
        return 0
    alone = plan.examples % plan.batch_size == 1  # the last step of an epoch
    return epochs * (plan.examples - alone) + within * plan.batch_size


def _with_answer_of(group: Group, other: Group, max_length: int) -> Group:
    own, foreign = group.answers[0], other.answers[0]
    prompt = own.input_ids[: own.spans[0].start]
    start = foreign.spans[0].start
    end = min(len(foreign.input_ids), start + max(1, max_length - len(prompt)))
    moved = len(prompt) - start
    spans = tuple(
        span._replace(start=span.start + moved, stop=min(span.stop, end) + moved)
        for span in foreign.spans
        if span.start < end
    )
    answer = Example((*prompt, *foreign.input_ids[start:end]), spans, own.origin)
    return Group((answer,), (group.liked[0],), group.weight)
