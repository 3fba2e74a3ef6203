"""How many tokens fit one forward and backward pass."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

import torch

from weitune.model.host_memory import host_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_TOKENS, MOST_TOKENS = 256, 16_384
SHARE_OF_FREE_MEMORY = 0.6


def activation_bytes_per_token(model: PreTrainedModel, *, plain_blocks: bool = False) -> int:
    """Estimate what a step keeps of one token, in bytes; fitted to peaks measured on Qwen2.5-0.5B.

    A decoder block with adapters on all projections keeps about 16 vectors of the hidden size and 6 of the feed-forward
    size in autograd; run by :mod:`weitune.model.block` (``plain_blocks``), 7 and 2.4.
    """
    config = model.config.get_text_config()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    width = 7 * config.hidden_size + 2.4 * wide if plain_blocks else 16 * config.hidden_size + 6 * wide
    return int(config.num_hidden_layers * width * torch.finfo(model.dtype).bits / 8)


def free_bytes(device: torch.device) -> int:
    """Return the memory that this process may still take on ``device``, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory().available


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


def choose_micro_tokens(model: PreTrainedModel, device: torch.device, *, plain_blocks: bool = False) -> int:
    """Return the ``train.micro_tokens`` that ``auto`` stands for: what fits the free memory, with room to spare."""
    free = int(free_bytes(device) * SHARE_OF_FREE_MEMORY)
    fits = free // activation_bytes_per_token(model, plain_blocks=plain_blocks)
    return max(LEAST_TOKENS, min(MOST_TOKENS, fits))
