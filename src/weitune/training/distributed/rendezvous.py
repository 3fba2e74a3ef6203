"""A rendezvous of a run's processes that survives torchrun's restarts.

torchrun keeps one store for all its restarts, where restarted processes find the addresses of killed ones (PyTorch
2.13). So at every start they agree on an endpoint for a new store, which process 0 serves:

    process k   writes a random token to hello/k           reads the endpoint under that token
    process 0   reads the tokens, answers each with its    until all have acknowledged
                address and a free port

The token is new at each start, so only the process 0 of the same start answers it.
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
from weitune.ranks import free_port, rank, world_size

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_STORE_IS_KEPT = "TORCHELASTIC_USE_AGENT_STORE"
_ADDRESS, _PORT = "MASTER_ADDR", "MASTER_PORT"
_WAIT = timedelta(minutes=30)
_POLL_SECONDS = 0.05
_FOLDER = "weitune"


def use_new_store() -> None:
    """Point this process to a new store, if torchrun would have it reuse the one of an earlier start."""
    if os.environ.get(_STORE_IS_KEPT) != "True":
        return
    from torch._C._distributed_c10d import PrefixStore, TCPStore
    from torch.distributed import is_initialized

    if is_initialized():  # the process group is there already
        return

    host = os.environ[_ADDRESS]
    kept = PrefixStore(_FOLDER, TCPStore(host, int(os.environ[_PORT]), is_master=False, timeout=_WAIT))
    endpoint = agree_on_endpoint(kept, rank(), world_size(), own_address(host))
    os.environ[_ADDRESS], os.environ[_PORT] = endpoint.split(" ")
    os.environ[_STORE_IS_KEPT] = "False"


def own_address(host: str) -> str:
    """Return an address of this machine in the network of ``host``; ``host`` itself if it is this machine.

    Process 0 may run on another machine than torchrun's store.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # of a datagram socket: picks a route and sends nothing
        own = str(probe.getsockname()[0])
    return host if own == address[0] or ipaddress.ip_address(own.partition("%")[0]).is_loopback else own


def agree_on_endpoint(store: Store, rank: int, processes: int, address: str) -> str:
    """Return the endpoint that process 0 has chosen, on each of the ``processes`` that have started together.

    It is process 0's ``address`` and a free port. Raises RunError if not all have started within half an hour.
    """
    if rank:
        token = secrets.token_hex(8)
        store.set(f"hello/{rank}", token)
        answer: str = store.get(f"endpoint/{token}").decode()
        store.set(f"seen/{answer}/{token}/{rank}", "1")
        return answer
    endpoint = f"{address} {free_port()}"
    tokens = dict.fromkeys(range(1, processes), "")
    end = time.monotonic() + _WAIT.total_seconds()
    while not all(token and store.check([f"seen/{endpoint}/{token}/{k}"]) for k, token in tokens.items()):
        for k in tokens:
            if store.check([f"hello/{k}"]):
                tokens[k] = store.get(f"hello/{k}").decode()
                store.set(f"endpoint/{tokens[k]}", endpoint)
        if time.monotonic() > end:
            raise RunError("training.rendezvous.not_all_came")
        time.sleep(_POLL_SECONDS)
    return endpoint
