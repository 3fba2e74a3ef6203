"""Norms of query, key and value heads, each head on its own or all of a token together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weitune.model.fast.norm import Norm, read_norm


@dataclass(frozen=True, slots=True, eq=False)
class HeadNorm:
    """A norm over the last ``width`` values of heads (B, T, H, D): D, or all H·D."""

    norm: Norm | None
    """None: the model's own module computes it"""
    module: Callable[[Tensor], Tensor]
    per_head: bool

    def __call__(self, heads: Tensor) -> Tensor:
        x = heads if self.per_head else heads.flatten(-2)
        if self.norm is None:
            return self.module(x).view(heads.shape)
        rows = x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled() and heads.requires_grad:
            normed: Tensor = _Normed.apply(rows, self.norm)  # type: ignore[no-untyped-call]
        else:
            normed = self.norm.forward(rows)[0]
        return normed.view(heads.shape)


class _Normed(torch.autograd.Function):
    """A norm whose weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        normed, statistics = norm.forward(x)
        ctx.save_for_backward(x)
        ctx.norm, ctx.statistics = norm, statistics
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return ctx.norm.backward(grads[0], x, ctx.statistics), None


def read_head_norm(module: Any, size: int) -> HeadNorm | None:
    """Return the norm that ``module`` computes for heads of ``size``; None if there is no module."""
    if module is None:
        return None
    weight = getattr(module, "weight", None)
    per_head = weight is None or weight.shape[-1] == size
    norm = read_norm(module) if weight is not None and weight.dim() == 1 else None
    return HeadNorm(norm, module, per_head)
