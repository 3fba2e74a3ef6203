"""The memory of a device now: what is free, what this process holds, and how many tokens fit into one pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import torch

from weitune.forecast.memory_estimate import (
    ENOUGH_TOKENS,
    LEAST_TOKENS,
    MOST_TOKENS,
    MOST_TOKENS_ON_CPU,
    ModelShape,
    PassConfig,
    PassSize,
    fitting_tokens,
    pass_bytes,
)
from weitune.model.cuda_graph import MOST_RECORDED_TOKENS
from weitune.model.storage.host_memory import host_memory
from weitune.ranks import local_world_size
from weitune.recipe.schema import Recompute, Train

SHARE_OF_FREE_MEMORY = 0.7
"""Share of the free memory that ``auto`` lets a pass take: forecasts err, and other programs need some."""


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process may still allocate on ``device``; processes of one run share the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory().available // local_world_size()


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process so far, in bytes: of the accelerator, or of the machine on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    if psutil.WINDOWS:
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if psutil.MACOS else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def choose_micro_tokens(
    shape: ModelShape,
    config: PassConfig,
    *,
    budget: int,
    longest: int,
    undivided: int = 0,
    most_on_cpu: int = MOST_TOKENS_ON_CPU,
) -> int:
    """Return the value of ``train.micro_tokens: auto``: the most tokens whose pass takes at most ``budget`` bytes.

    It is at least ``longest``, the tokens of the longest example, and ``undivided``, those of the largest group, since
    some pass must hold that one, and at most MOST_TOKENS; on a CPU, ``most_on_cpu`` or two of the longest, whose common
    beginning is then computed once. Passes of blocks that are not like Llama's, and of stored matrices, which a pass
    makes dense, are not shorter than MOST_TOKENS_ON_CPU.
    """
    held = max(longest, undivided)
    if not config.plain_blocks or config.modules is not None or config.dense_bytes:
        most_on_cpu = MOST_TOKENS_ON_CPU
    most = min(max(most_on_cpu, 2 * held), MOST_TOKENS) if config.slices else MOST_TOKENS

    def fits(tokens: int) -> bool:
        return sum(pass_bytes(shape, PassSize(tokens, tokens, longest), config)) <= budget

    return fitting_tokens(fits, least=min(max(LEAST_TOKENS, held), MOST_TOKENS), most=most)


def choose_recorded_tokens(shape: ModelShape, config: PassConfig, *, budget: int) -> int:
    """Return how many tokens a pass that is recorded as a CUDA graph may have if ``budget`` bytes are free.

    Recordings keep the memory of the largest of them for good, and a pass that is not recorded may need as much again.
    """

    def fits(tokens: int) -> bool:
        return 2 * sum(pass_bytes(shape, PassSize(tokens, tokens, tokens), config)) <= budget

    return fitting_tokens(fits, least=0, most=MOST_RECORDED_TOKENS)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a step is split into passes to fit in memory, and what copies memory is left for.

    Nothing of it changes a step's result, beyond rounding.
    """

    micro_tokens: int
    recompute: Recompute
    packed: bool = False
    """Whether the frozen matrices are copied as :mod:`weitune.model.fast.packed` does."""


def plan_memory(
    shape: ModelShape,
    config: PassConfig,
    train: Train,
    *,
    budget: int,
    longest: int,
    undivided: int = 0,
    micro_tokens: int | None = None,
    copies: int = 0,
    most_on_cpu: int = MOST_TOKENS_ON_CPU,
) -> MemoryPlan:
    """Resolve ``auto`` for passes of at most ``budget`` bytes; ``micro_tokens`` overrides the recipe.

    On a CPU ``auto`` is at most ``most_on_cpu`` (:func:`choose_micro_tokens`).

    Packed ``copies``, of so many bytes, are made if a pass leaves that much; none if it is 0.

    The lowest level of recomputation is chosen with which one pass can hold the requested tokens, or ENOUGH_TOKENS, and
    the longest example, of ``longest`` tokens, or the largest group, of ``undivided``.
    """
    if micro_tokens is None and train.micro_tokens != "auto":
        micro_tokens = train.micro_tokens
    levels: tuple[Recompute, ...] = get_args(Recompute) if train.recompute == "auto" else (train.recompute,)
    most = max(micro_tokens or ENOUGH_TOKENS, longest, undivided)
    wanted = PassSize(most, most, longest)
    configs = [replace(config, recompute=level) for level in levels]
    fitting = (config for config in configs if sum(pass_bytes(shape, wanted, config)) <= budget)
    chosen = next(fitting, configs[-1])
    tokens = micro_tokens or choose_micro_tokens(
        shape, chosen, budget=budget, longest=longest, undivided=undivided, most_on_cpu=most_on_cpu
    )
    left = budget - sum(pass_bytes(shape, PassSize(tokens, tokens, longest), chosen))
    return MemoryPlan(tokens, chosen.recompute, packed=0 < copies <= left)
