"""The accelerator of a run, whatever the environment says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DynamoBackend

from weitune.cli.train.launch import refuse_one_device
from weitune.errors import InputError
from weitune.training.distributed.processes import check_device, make_accelerator


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The states of accelerate live as long as the process."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState):
        state._reset_state()


def test_the_environment_changes_no_gradient_and_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = make_accelerator(torch.device("cpu"))
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
    weight = torch.ones(1, requires_grad=True)
    accelerator.backward(3 * weight.sum())
    assert weight.grad == 3


def test_several_processes_do_not_share_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device("cuda:0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="'cuda:0' is one device, and this run has 2 processes"):
        check_device("cuda:0")
    for device in (None, "cpu", "cpu:0", "cuda", "cuda:1"):
        check_device(device)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(InputError, match="is one device, and this run has 4 processes"):
        refuse_one_device("cuda:0", 4)
    for device in (None, "cpu:0", "cuda"):
        refuse_one_device(device, 4)
