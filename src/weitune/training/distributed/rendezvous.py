"""Where the processes of a run find each other when torchrun starts them again.

torchrun keeps one store of keys for all its restarts, and processes that look each other up there find the addresses of
those that were killed before (PyTorch 2.13). So at every start they agree on a new place, a store that process 0 holds:

    process k   writes a word of its own to hello/k        reads the place under that word
    process 0   reads the words, answers each with its     until all have come
                place, its address and a free port

The word is new at each start, so only a process 0 of the same start answers it.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from weitune.errors import RunError
from weitune.ranks import rank, world_size

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_STORE_IS_KEPT = "TORCHELASTIC_USE_AGENT_STORE"
_ADDRESS, _PORT = "MASTER_ADDR", "MASTER_PORT"
_WAIT = timedelta(minutes=30)
_GLANCE_SECONDS = 0.05
_FOLDER = "weitune"


def take_new_place() -> None:
    """Let this process meet the others at a new place, if torchrun has them meet where earlier ones did."""
    if os.environ.get(_STORE_IS_KEPT) != "True":
        return
    from torch._C._distributed_c10d import PrefixStore, TCPStore
    from torch.distributed import is_initialized

    if is_initialized():  # they have met
        return

    host = os.environ[_ADDRESS]
    kept = PrefixStore(_FOLDER, TCPStore(host, int(os.environ[_PORT]), is_master=False, timeout=_WAIT))
    place = agree_on_place(kept, rank(), world_size(), own_address(host))
    os.environ[_ADDRESS], os.environ[_PORT] = place.split(" ")
    os.environ[_STORE_IS_KEPT] = "False"


def own_address(host: str) -> str:
    """Return an address of this machine that those who reach ``host`` can reach; ``host`` itself if it is this machine.

    Process 0 need not run where torchrun keeps its store.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # of a datagram socket: chooses a route and sends nothing
        own = str(probe.getsockname()[0])
    return host if own == address[0] or ipaddress.ip_address(own.partition("%")[0]).is_loopback else own


def agree_on_place(store: Store, rank: int, processes: int, address: str) -> str:
    """Return the place that process 0 has chosen, on each of ``processes`` that have started together.

    It is ``address``, that of process 0, and a port. Raises RunError if not all come within half an hour.
    """
    if rank:
        word = secrets.token_hex(8)
        store.set(f"hello/{rank}", word)
        told: str = store.get(f"place/{word}").decode()
        store.set(f"come/{told}/{word}/{rank}", "1")
        return told
    place = f"{address} {_free_port()}"
    words = dict.fromkeys(range(1, processes), "")
    end = time.monotonic() + _WAIT.total_seconds()
    while not all(word and store.check([f"come/{place}/{word}/{k}"]) for k, word in words.items()):
        for k in words:
            if store.check([f"hello/{k}"]):
                words[k] = store.get(f"hello/{k}").decode()
                store.set(f"place/{words[k]}", place)
        if time.monotonic() > end:
            raise RunError("training.rendezvous.not_all_came")
        time.sleep(_GLANCE_SECONDS)
    return place


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(probe.getsockname()[1])
