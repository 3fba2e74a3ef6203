"""The memory there is, what this process holds of it, and how many tokens fit one forward and backward pass."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass, replace
from typing import get_args

import torch

from weitune.model.host_memory import host_memory
from weitune.model.need import ENOUGH_TOKENS, Manner, PassSize, Shape, fitting_tokens, pass_bytes
from weitune.recipe.schema import Recompute, Train

SHARE_OF_FREE_MEMORY = 0.7
"""What ``auto`` lets a pass take of the memory that is free: forecasts err, and other programs need some."""


def free_bytes(device: torch.device) -> int:
    """Return the memory that this process may still take on ``device``, in bytes; processes of one run share it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process has held so far: of the accelerator, or of the machine on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    if psutil.WINDOWS:
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if psutil.MACOS else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for what it takes next, where the C library is glibc.

    A training step frees and takes the same large tensors again and again. By default each goes back to the system and
    comes again page by page, some 50,000 page faults a step for Qwen2.5-0.5B; the peak is the same. See mallopt(3).
    """
    if sys.platform != "linux":
        return
    mmap_max, trim_threshold = -4, -1
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):  # another C library
        return


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def choose_micro_tokens(shape: Shape, manner: Manner, *, budget: int, longest: int) -> int:
    """Return the ``train.micro_tokens`` that ``auto`` stands for: the most tokens whose pass takes at most ``budget``.

    ``longest`` is the longest example: a pass holds at least that one.
    """

    def fits(tokens: int) -> bool:
        return sum(pass_bytes(shape, PassSize(tokens, tokens, longest), manner)) <= budget

    return fitting_tokens(fits)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a step fits into memory: neither changes its result."""

    micro_tokens: int
    recompute: Recompute


def plan_memory(
    shape: Shape, manner: Manner, train: Train, *, budget: int, longest: int, micro_tokens: int | None = None
) -> MemoryPlan:
    """Return what ``auto`` stands for if a pass may take ``budget`` bytes; ``micro_tokens`` overrides the recipe.

    As little is computed again as lets the tokens that are asked for, or ENOUGH_TOKENS, into one pass. ``longest`` is
    the longest example, in tokens.
    """
    if micro_tokens is None and train.micro_tokens != "auto":
        micro_tokens = train.micro_tokens
    levels: tuple[Recompute, ...] = get_args(Recompute) if train.recompute == "auto" else (train.recompute,)
    wanted = PassSize(micro_tokens or ENOUGH_TOKENS, micro_tokens or ENOUGH_TOKENS, longest)
    manners = [replace(manner, recompute=level) for level in levels]
    fitting = (manner for manner in manners if sum(pass_bytes(shape, wanted, manner)) <= budget)
    chosen = next(fitting, manners[-1])
    tokens = micro_tokens or choose_micro_tokens(shape, chosen, budget=budget, longest=longest)
    return MemoryPlan(tokens, chosen.recompute)
