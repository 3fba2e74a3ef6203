"""Where the processes of a run find each other when torchrun starts them again.

torchrun keeps one store of keys for all its restarts, and processes that look each other up there find the addresses of
those that were killed before (PyTorch 2.13). So at every start they agree on a new place, a store that process 0 holds:

    process k   writes a word of its own to hello/k        reads the place under that word
    process 0   reads the words, answers each with its     until all have come
                place, a port that is free

The word is new at each start, so only a process 0 of the same start answers it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from weitune.errors import RunError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_STORE_IS_KEPT = "TORCHELASTIC_USE_AGENT_STORE"
_PORT = "MASTER_PORT"
_WAIT = timedelta(minutes=30)
_GLANCE_SECONDS = 0.05
_FOLDER = "weitune"


def take_new_place() -> None:
    """Let this process meet the others at a new port, if torchrun has them meet where earlier ones did."""
    if os.environ.get(_STORE_IS_KEPT) != "True":
        return
    from torch._C._distributed_c10d import PrefixStore, TCPStore
    from torch.distributed import is_initialized

    if is_initialized():  # they have met
        return

    kept = TCPStore(os.environ["MASTER_ADDR"], int(os.environ[_PORT]), is_master=False, timeout=_WAIT)
    os.environ[_PORT] = agree_on_place(
        PrefixStore(_FOLDER, kept), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    )
    os.environ[_STORE_IS_KEPT] = "False"


def agree_on_place(store: Store, rank: int, processes: int) -> str:
    """Return the port that process 0 has chosen, on each of ``processes`` that have started together.

    Raises RunError if not all of them come within half an hour.
    """
    if rank:
        word = secrets.token_hex(8)
        store.set(f"hello/{rank}", word)
        place: str = store.get(f"place/{word}").decode()
        store.set(f"come/{place}/{word}/{rank}", "1")
        return place
    port = _free_port()
    words = dict.fromkeys(range(1, processes), "")
    end = time.monotonic() + _WAIT.total_seconds()
    while not all(word and store.check([f"come/{port}/{word}/{k}"]) for k, word in words.items()):
        for k in words:
            if store.check([f"hello/{k}"]):
                words[k] = store.get(f"hello/{k}").decode()
                store.set(f"place/{words[k]}", port)
        if time.monotonic() > end:
            raise RunError("not all processes of this run have come", "See what the launcher says of the others.")
        time.sleep(_GLANCE_SECONDS)
    return port


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(probe.getsockname()[1])
