"""What decides the last bits of a result besides its inputs."""

from __future__ import annotations

import pytest
import torch

from weitune.run.machine import arithmetic


def test_devices_threads_and_versions_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    before = arithmetic(cpu)
    assert before == arithmetic(cpu)
    assert before != arithmetic(gpu)
    assert arithmetic(gpu) == arithmetic(torch.device("cuda", 1))  # another one of the same kind
    for name, change in {"get_num_threads": lambda: 77, "__version__": "0.0"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, change)
            assert arithmetic(cpu) != before
