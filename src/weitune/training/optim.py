"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from weitune.recipe.schema import Train

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def make_optimizer(parameters: Iterable[nn.Parameter], train: Train) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter, arXiv 1711.05101) over ``parameters``."""
    return torch.optim.AdamW(
        parameters, lr=train.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=train.weight_decay, fused=True
    )


def learning_rate(step: int, steps: int, train: Train) -> float:
    """Return the learning rate of ``step`` (from 0) in a run of ``steps``.

    It rises along a line over the warm-up, then falls as ``train.schedule`` says; the same numbers as
    ``transformers.get_scheduler`` gives.
    """
    warmup = math.ceil(steps * train.warmup_ratio)
    if step < warmup:
        return train.learning_rate * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match train.schedule:
        case "linear":
            return train.learning_rate * max(0.0, 1.0 - done)
        case "cosine":
            return train.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
        case "constant":
            return train.learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` in the next step of ``optimizer``."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every random generator for one step on one device: the randomness of a run needs no other state.

    SplitMix64's finaliser (Steele et al., 2014) spreads neighbouring numbers over the whole range.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) % 2**64
    torch.manual_seed(mixed ^ (mixed >> 31))
