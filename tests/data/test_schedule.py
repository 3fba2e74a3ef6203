"""The steps of a run: every epoch sees every example once, in an order that never changes between versions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.schedule import Plan


@given(
    st.integers(1, 100), st.integers(1, 20), st.integers(1, 3), st.integers(0, 2**63 - 1), st.none() | st.integers(1, 9)
)
def test_an_epoch_sees_every_example_once(n: int, batch_size: int, epochs: int, seed: int, most: int | None) -> None:
    plan = Plan(n, batch_size, epochs, seed, most)
    steps = [plan.step(k) for k in range(plan.steps)]
    assert all(1 <= len(step) <= batch_size for step in steps)
    if most is None:
        for epoch in range(epochs):
            part = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
            assert sorted(np.concatenate(part).tolist()) == list(range(n))
    with pytest.raises(IndexError):
        plan.step(plan.steps)


def test_the_plan_is_fixed_for_ever() -> None:
    """Resuming an old run on a new version must see the same steps: these numbers may never change."""
    assert Plan(10, 4, 2, 42).step(0).tolist() == [7, 1, 6, 4]
    assert Plan(10, 4, 2, 42).step(5).tolist() == [6, 8]
