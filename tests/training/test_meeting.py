"""Processes that torchrun starts again meet each other, and not those that were killed before."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore

from weitune.training.meeting import agree_on_place, take_new_place


def start(store: Any, ranks: list[int], processes: int) -> list[str]:
    """Start ``ranks`` in this order and return the places that they agree on."""
    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(lambda rank: agree_on_place(store, rank, processes), ranks))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_all_agree_start_after_start(processes: int) -> None:
    store: Any = HashStore()
    for k in range(3):
        ranks = list(range(processes))
        agreed = start(store, ranks if k % 2 else ranks[::-1], processes)
        assert len(set(agreed)) == 1
        assert agreed[0].isdecimal()


def test_what_a_killed_process_left_is_not_taken() -> None:
    store: Any = HashStore()
    store.set("hello/1", "word-of-the-dead")
    store.set("place/word-of-the-dead", "1")
    store.set("come/1/word-of-the-dead/1", "1")
    first, second = start(store, [0, 1], 2)
    assert first == second != "1"


def test_other_launchers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    for said in (None, "False"):
        if said is None:
            monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        else:
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", said)
        take_new_place()
        assert os.environ["MASTER_PORT"] == "29500"
