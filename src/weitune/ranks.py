"""Rank and world size, from the variables that torchrun and ``weitune train --devices`` set; and a free port."""

from __future__ import annotations

import os
import socket

WORLD_SIZE = "WORLD_SIZE"


def rank() -> int:
    """Return the rank of this process among all processes of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes the run has; 1 without a launcher."""
    return int(os.environ.get(WORLD_SIZE, "1"))


def local_rank() -> int:
    """Return the rank of this process among those on this machine; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return how many of the run's processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launched() -> bool:
    """Return whether a launcher has started this process."""
    return WORLD_SIZE in os.environ


def free_port(address: str = "") -> int:
    """Return a port that nobody listens on at ``address`` of this machine, or at any of its addresses."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
