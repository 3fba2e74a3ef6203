"""Kept examples get their share of every epoch, and the run's own steps stay as they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.keep.mixed_plan import KeptUse, MixedPlan, tokens_due
from weitune.data.schedule import Plan

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def mixed(own: list[int], kept: list[int], share: float, plan: Plan) -> MixedPlan:
    return MixedPlan.over(plan, np.asarray(own, np.int32), np.asarray(kept, np.int32), share)


@given(lengths, lengths, st.floats(0.01, 0.5), st.integers(1, 9), st.integers(0, 2**63 - 1))
def test_all_epochs_up_to_any_have_their_share_to_half_an_example(
    own: list[int], kept: list[int], share: float, batch_size: int, seed: int
) -> None:
    plan = Plan(len(own), batch_size, 2, seed)
    both = mixed(own, kept, share, plan)
    assert (both.steps, both.steps_per_epoch) == (plan.steps, plan.steps_per_epoch)
    learned = 0
    for epoch in range(2):
        for k in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            step = both.step(k)
            assert step[: len(plan.step(k))].tolist() == plan.step(k).tolist()
            added = step[len(plan.step(k)) :] - len(own)
            assert all(0 <= number < len(kept) for number in added)
            learned += sum(kept[number] for number in added)
        assert abs(learned - (epoch + 1) * sum(own) * share / (1 - share)) <= max(kept) / 2 + 1e-6
    use = both.use()
    assert (use.tokens, use.own_tokens) == (learned, 2 * sum(own))


@given(lengths, lengths, st.floats(0.01, 0.5), st.integers(0, 99))
def test_a_step_depends_on_nothing_but_the_plan(own: list[int], kept: list[int], share: float, seed: int) -> None:
    plan = Plan(len(own), 4, 3, seed)
    forwards, backwards = mixed(own, kept, share, plan), mixed(own, kept, share, plan)
    steps = [forwards.step(k).tolist() for k in range(plan.steps)]
    assert [backwards.step(k).tolist() for k in reversed(range(plan.steps))][::-1] == steps


def test_all_are_used_before_one_comes_again() -> None:
    plan = Plan(100, 10, 1, seed=3)
    both = mixed([10] * 100, [10] * 7, 0.1, plan)
    added = [int(number) - 100 for k in range(plan.steps) for number in both.step(k) if number >= 100]
    assert sorted(added[:7]) == list(range(7))
    assert len(added) == 11  # a ninth of 1,000 tokens


def test_what_is_due_after_an_epoch_comes_in_the_next() -> None:
    both = mixed([5, 5], [30], 0.1, Plan(2, 2, 20, seed=3))
    assert [len(both.step(k)) - 2 for k in range(20)] == [0] * 13 + [1] + [0] * 6  # 14 epochs make 15 tokens due
    assert both.use() == KeptUse(1, 30, 200)
    assert mixed([5, 5], [30], 0.1, Plan(2, 2, 13, seed=3)).use() == KeptUse(0, 0, 130)


def test_all_are_used_before_one_comes_again_in_a_later_epoch() -> None:
    plan = Plan(20, 10, 3, seed=3)
    both = mixed([10] * 20, [10] * 7, 0.1, plan)  # a ninth of 600 tokens
    added = [int(number) - 20 for k in range(plan.steps) for number in both.step(k) if number >= 20]
    assert sorted(added) == list(range(7))
    assert both.use() == KeptUse(7, 70, 600)


def test_the_plan_is_fixed_for_ever() -> None:
    """Resuming an old run on a new version must see the same steps: these numbers may never change."""
    both = mixed([5, 9, 2, 7, 4, 8, 6, 3, 5, 9], [6, 11, 4], 0.25, Plan(10, 4, 2, 42))
    assert [both.step(k).tolist() for k in range(both.steps)] == [
        [7, 1, 6, 4, 10],
        [3, 5, 9, 0, 11],
        [2, 8, 12],
        [4, 9, 5, 3, 10],
        [0, 2, 7, 1, 12],
        [6, 8, 11],
    ]


def test_nothing_to_learn_is_refused() -> None:
    for kept in ([], [3, 0]):
        with pytest.raises(ValueError, match="something to learn"):
            mixed([5], kept, 0.1, Plan(1, 1, 1, 0))


def test_tokens_that_are_due() -> None:
    assert tokens_due(900, 0.1) == 100
    assert tokens_due(500, 0.5) == 500
