"""Measured answers: those of each group alone, whatever else is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.invariant.test_answers import ALONE, TREE, by_itself
from tests.training.objective.test_preference_objective import drawn_groups
from weitune.data.layout import SEPARATE_GROUPS, SHARED_GROUPS, Layout
from weitune.evaluate.answers import measure_answers
from weitune.model.supervised import SupervisedModel
from weitune.training.preference.answer_meter import AnswerMeter

GROUPS = drawn_groups(6, pairs=True)


@pytest.mark.parametrize("micro_tokens", [30, 4096])
@pytest.mark.parametrize(("layout", "model"), [(SHARED_GROUPS, TREE), (SEPARATE_GROUPS, ALONE)], ids=["tree", "padded"])
def test_they_are_in_order_and_those_of_each_answer_alone(layout: Layout, model: Any, micro_tokens: int) -> None:
    module, told = SupervisedModel(model).train(), []
    groups = [*GROUPS, GROUPS[1]]  # one object twice
    found = measure_answers(
        module, groups, layout, micro_tokens, torch.device("cpu"), lambda done, total: told.append((done, total))
    )
    assert [len(sums) for sums in found] == [2] * 7
    torch.testing.assert_close(
        torch.from_numpy(np.concatenate(found)), by_itself(groups).detach(), rtol=1e-5, atol=1e-5
    )
    assert told[-1][0] == told[-1][1] == len(told)
    assert module.training


def test_the_meter_of_a_run_finds_the_same() -> None:
    meter = AnswerMeter(SupervisedModel(TREE), SHARED_GROUPS, Accelerator(cpu=True))
    groups = [GROUPS[2], *GROUPS, GROUPS[2]]
    found = meter(groups)
    torch.testing.assert_close(torch.from_numpy(found.sums), by_itself(groups).detach(), rtol=1e-5, atol=1e-5)
    assert found[0] == found[3] == found[7]
    assert len(meter([])) == 0
