"""The memory there is, what this process holds of it, and how many tokens fit one forward and backward pass."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from weitune.model.host_memory import host_memory
from weitune.model.need import (
    ENOUGH_TOKENS,
    LEAST_TOKENS,
    MOST_TOKENS,
    Manner,
    PassSize,
    Shape,
    fitting_tokens,
    pass_bytes,
)
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
    _glibc("mallopt", _MMAP_MAX, 0)
    _glibc("mallopt", _TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed() -> None:
    """Give what :func:`keep_freed_memory` has kept back to the system: what comes next has other sizes.

    It would stay, in holes that the other sizes do not fit, and the peak would be the sum of both. See malloc_trim(3).
    """
    _glibc("malloc_trim", 0)


@contextmanager
def giving_back(files: Iterable[Path] = ()) -> Iterator[None]:
    """Give every tensor that is freed in the block back to the system at once, and now and then the pages of ``files``.

    For loading with conversion: freed tensors would leave holes that nothing later fits, and what has been read of a
    mapped file would stay resident. Where the C library is not glibc or the system not Linux, less is given back.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_give_back_pages, args=({str(f.resolve()) for f in files}, ended), daemon=True)
    _glibc("mallopt", _MMAP_MAX, 1 << 16)
    _glibc("mallopt", _MMAP_THRESHOLD, 1 << 20)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        _glibc("mallopt", _MMAP_THRESHOLD, 1 << 25)  # where glibc itself lets them rise to
        _glibc("mallopt", _TRIM_THRESHOLD, 1 << 26)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MADV_PAGEOUT = 21
"""It loses nothing, whatever lies at the address by then. See madvise(2)."""


def _glibc(function: str, *numbers: int) -> None:
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), function)(*numbers)


def _give_back_pages(paths: set[str], ended: threading.Event) -> None:
    """Ask, ten times a second, that the pages of mapped ``paths`` go back to the system."""
    if sys.platform != "linux" or not paths:
        return
    libc = ctypes.CDLL(None)
    while not ended.wait(0.1):
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, *_, path = line.split(maxsplit=5)
            if path in paths:
                first, last = (int(address, 16) for address in span.split("-"))
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_PAGEOUT)


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def choose_micro_tokens(shape: Shape, manner: Manner, *, budget: int, longest: int) -> int:
    """Return the ``train.micro_tokens`` that ``auto`` stands for: the most tokens whose pass takes at most ``budget``.

    It is never less than ``longest``, the longest example, since some pass must hold that one, but at most MOST_TOKENS.
    """

    def fits(tokens: int) -> bool:
        return sum(pass_bytes(shape, PassSize(tokens, tokens, longest), manner)) <= budget

    return fitting_tokens(fits, least=min(max(LEAST_TOKENS, longest), MOST_TOKENS))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a step fits into memory: neither changes its result."""

    micro_tokens: int
    recompute: Recompute


def plan_memory(
    shape: Shape, manner: Manner, train: Train, *, budget: int, longest: int, micro_tokens: int | None = None
) -> MemoryPlan:
    """Return what ``auto`` stands for if a pass may take ``budget`` bytes; ``micro_tokens`` overrides the recipe.

    As little is computed again as lets the tokens that are asked for, or ENOUGH_TOKENS, into one pass, and the longest
    example, of ``longest`` tokens, too.
    """
    if micro_tokens is None and train.micro_tokens != "auto":
        micro_tokens = train.micro_tokens
    levels: tuple[Recompute, ...] = get_args(Recompute) if train.recompute == "auto" else (train.recompute,)
    most = max(micro_tokens or ENOUGH_TOKENS, longest)
    wanted = PassSize(most, most, longest)
    manners = [replace(manner, recompute=level) for level in levels]
    fitting = (manner for manner in manners if sum(pass_bytes(shape, wanted, manner)) <= budget)
    chosen = next(fitting, manners[-1])
    tokens = micro_tokens or choose_micro_tokens(shape, chosen, budget=budget, longest=longest)
    return MemoryPlan(tokens, chosen.recompute)
