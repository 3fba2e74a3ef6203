"""Every trial starts from the same model, whatever the trials before it have trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Inputs, make_inputs
from weitune.training.build import load_base
from weitune.training.inputs import collect_inputs
from weitune.training.reporter import Reporter
from weitune.training.signals import StopRequest
from weitune.tune.search import Candidate, Trial
from weitune.tune.trials import Trials

KEYS: dict[str, Any] = {"validation": 0.3, "train.batch_size": 2, "train.epochs": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("trials") / "inputs")


@pytest.mark.parametrize(
    "trained",
    [
        {"lora.modules_to_save": ["embed_tokens"], "train.precision": "bf16"},
        {"lora.modules_to_save": ["lm_head"]},
        {"lora.train_tokens": ["!"]},
    ],
    ids=str,
)
def test_a_trial_leaves_nothing_for_one_of_another_rank(trained: dict[str, Any], inputs: Inputs) -> None:
    recipe = inputs.recipe(Path("unused"), **KEYS, **trained)

    def made(*ranks: int) -> tuple[float, ...]:
        trials = Trials(load_base(recipe, "cpu"), collect_inputs(recipe, Reporter()))
        for r in ranks:
            outcome = trials.run(Trial(1, Candidate(1e-2, 2, 4, r), 6, 6, 1e-2), StopRequest())
        assert outcome is not None
        return (*outcome.losses, outcome.loss)

    assert made(4, 8) == made(8)
    assert made(8, 4, 8) == made(8)
