"""Processes that torchrun starts again meet each other, and not those that were killed before."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from torch.distributed import HashStore

from weitune.training.distributed.rendezvous import agree_on_endpoint, own_address, use_new_store


def start(store: Any, ranks: list[int], processes: int) -> list[str]:
    """Start ``ranks`` in this order and return the endpoints that they agree on."""
    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(lambda rank: agree_on_endpoint(store, rank, processes, f"host-{rank}"), ranks))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_all_agree_start_after_start(processes: int) -> None:
    store: Any = HashStore()
    for k in range(3):
        ranks = list(range(processes))
        agreed = start(store, ranks if k % 2 else ranks[::-1], processes)
        assert len(set(agreed)) == 1
        host, port = agreed[0].split(" ")
        assert host == "host-0"  # process 0 holds the store, wherever it runs
        assert port.isdecimal()


def test_what_a_killed_process_left_is_not_taken() -> None:
    store: Any = HashStore()
    store.set("hello/1", "word-of-the-dead")
    store.set("endpoint/word-of-the-dead", "1")
    store.set("seen/1/word-of-the-dead/1", "1")
    first, second = start(store, [0, 1], 2)
    assert first == second != "1"


def test_the_address_is_this_machines() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("localhost") == "localhost"
    mine = socket.gethostname()
    with suppress(OSError):  # a machine that does not know its own name
        assert own_address(mine) == mine


def test_other_launchers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    for said in (None, "False"):
        if said is None:
            monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        else:
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", said)
        use_new_store()
        assert os.environ["MASTER_PORT"] == "29500"
