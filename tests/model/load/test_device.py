"""Which device a process computes on."""

from __future__ import annotations

import types

import pytest
import torch

from weitune.errors import ModelError
from weitune.model.load.device import choose_device


def machine(monkeypatch: pytest.MonkeyPatch, kind: str, rank: int = 0, count: int = 2) -> None:
    """Pretend that this is the process ``rank`` of a machine with accelerators."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setenv("LOCAL_RANK", str(rank))


def test_each_process_of_a_machine_has_its_own_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "cuda", rank=1)
    assert choose_device() == torch.device("cuda", 1)
    assert choose_device("meta") == torch.device("meta", 1)  # a kind without a number; there is no GPU in tests
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(torch.device("cuda", 0)) == torch.device("cuda", 0)


def test_mps_is_not_chosen_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "mps", count=1)
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch, "empty", lambda *size, device: types.SimpleNamespace(device=torch.device(device, 0)))
    with pytest.raises(ModelError, match="'mps' has no float64"):
        choose_device("mps")


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(ModelError, match="'abacus' cannot be used"):
        choose_device("abacus")
