"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from weitune.messages import say
from weitune.recipe.schema import Train

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_LARGE_WARMUP = 0.5
"""Share of a run's steps from which a warm-up is worth a note."""
_LARGE_STILL = 0.1
"""Share of a run's steps from which one step at learning rate 0 is worth a note."""


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], train: Train, plus_ratio: float = 1.0
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the ``parameters`` that require a gradient.

    The B matrices of adapters get ``plus_ratio`` times the learning rate (LoRA+, Hayou et al., arXiv 2402.12354).
    """
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    fast = {name for name, _ in trained if ".lora_B." in name} if plus_ratio != 1 else set()
    groups = [
        {"params": [p for name, p in trained if (name in fast) == chosen], "ratio": ratio}
        for chosen, ratio in ((False, 1.0), (True, plus_ratio))
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.rate,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=train.weight_decay,
        fused=True,
    )


def learning_rate(step: int, steps: int, train: Train) -> float:
    """Return the learning rate of ``step`` (from 0) in a run of ``steps``.

    It rises linearly over the warm-up, then follows ``train.schedule``; the numbers are those of
    ``transformers.get_scheduler``.
    """
    warmup = math.ceil(steps * train.warmup_ratio)
    if step < warmup:
        return train.rate * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match train.schedule:
        case "linear":
            return train.rate * max(0.0, 1.0 - done)
        case "cosine":
            return train.rate * 0.5 * (1.0 + math.cos(math.pi * done))
        case "constant":
            return train.rate


def warmup_note(steps: int, train: Train) -> str:
    """Return a note if the warm-up takes a large part of a run of ``steps``, and nothing otherwise.

    The warm-up is rounded up to whole steps, and its first step has the rate 0, as in transformers.
    """
    warmup = math.ceil(steps * train.warmup_ratio)
    if not warmup:
        return ""
    if not any(learning_rate(step, steps, train) > 0 for step in (0, steps - 1)):
        return say("training.optim.never_learns", ratio=train.warmup_ratio, count=steps)
    if warmup < steps * _LARGE_WARMUP and steps * _LARGE_STILL > 1:
        return ""
    return say("training.optim.long_warmup", ratio=train.warmup_ratio, steps=steps, count=warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of ``optimizer`` to ``rate``, times the ratio of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every random generator for one step on one device, so that no generator state need be saved.

    SplitMix64's finaliser (Steele et al., 2014) spreads neighbouring numbers over the whole range.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) % 2**64
    torch.manual_seed(mixed ^ (mixed >> 31))
