"""Mismatched answers of KTO."""

from __future__ import annotations

import pytest

from tests.data.preference.test_reference import answered
from weitune.data.conversation import Example, Span
from weitune.data.preference.mismatched import first_mismatched, mismatched
from weitune.data.preference.values import Group
from weitune.data.schedule import Plan


def judged(prompt: tuple[int, ...], answer: tuple[int, ...], liked: bool = True) -> Group:
    return Group((answered(prompt, answer),), (liked,))


def test_each_prompt_gets_the_next_answer() -> None:
    groups = [judged((1,), (10, 11)), judged((2, 3), (20,), False), judged((4,), (30, 31, 32))]
    found = mismatched(groups, 100)
    assert [group.answers[0] for group in found] == [
        answered((1,), (20,)),
        answered((2, 3), (30, 31, 32)),
        answered((4,), (10, 11)),
    ]
    assert [group.liked for group in found] == [(True,), (False,), (True,)]


def test_spans_move_with_their_answer() -> None:
    gaps = Group((Example((1, 2, 10, 11, 12, 13, 14), (Span(2, 4), Span(5, 7))),), (True,))
    (first, _) = mismatched([judged((5,), (6,)), gaps], 100)
    assert first.answers[0] == Example((5, 10, 11, 12, 13, 14), (Span(1, 3), Span(4, 6)))


def test_a_long_one_is_cut_but_never_empty() -> None:
    groups = [judged((1, 2, 3), (4,)), judged((5,), (6, 7, 8))]
    assert mismatched(groups, 5)[0].answers[0] == answered((1, 2, 3), (6, 7))
    assert mismatched(groups, 3)[0].answers[0] == answered((1, 2, 3), (6,))


def test_one_group_alone_has_none() -> None:
    assert mismatched([judged((1,), (2,))], 100) == []


@pytest.mark.parametrize("examples", [1, 6, 7, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_counting_them_is_making_them(examples: int, batch_size: int) -> None:
    plan = Plan(examples, batch_size, 2, seed=1)
    group = judged((1,), (2,))
    made = 0
    for step in range(plan.steps):
        assert first_mismatched(plan, step) == made
        made += len(mismatched([group] * len(plan.step(step)), 100))
    assert first_mismatched(plan, plan.steps) == made
