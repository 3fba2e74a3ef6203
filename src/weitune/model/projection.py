"""A linear layer with its adapter, as plain tensors: y = x Wᵀ + b + s · dropout(x) Aᵀ Bᵀ  (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A frozen linear layer of N outputs and K inputs, and the adapter of rank R on it, if there is one."""

    weight: Tensor
    """(N, K)"""
    bias: Tensor | None
    """(N,)"""
    a: nn.Parameter | None = None
    """(R, K)"""
    b: nn.Parameter | None = None
    """(N, R)"""
    scale: float = 0.0
    """alpha / r"""
    rate: float = 0.0
    """Dropout of the adapter's input."""

    @property
    def rank(self) -> int:
        """R, or 0 without an adapter."""
        return 0 if self.a is None else self.a.shape[0]


def read_projection(layer: nn.Module) -> Projection | None:
    """Return the tensors of ``layer``: a plain linear layer, or PEFT's plain LoRA on one; None for anything else."""
    if type(layer) is nn.Linear:
        return Projection(layer.weight, layer.bias)
    base = getattr(layer, "base_layer", None)
    if type(base) is not nn.Linear or getattr(layer, "active_adapters", None) != ["default"]:
        return None
    if layer.merged or layer.lora_variant or layer.lora_bias.get("default"):  # DoRA and other variants are PEFT's own
        return None
    dropout = layer.lora_dropout["default"]
    rate = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    return Projection(base.weight, base.bias, a.weight, b.weight, float(layer.scaling["default"]), rate)


class LoraGroup:
    """Projections that read the same input: one dropout mask and one pass through all their A matrices.

    ``forward`` adds the adapters to the outputs of the frozen layers; ``backward`` gives the gradients of A and B, and
    adds the adapters' part to the gradient of the input. Both work on the input or on slices of its rows.
    """

    def __init__(self, projections: list[Projection]) -> None:
        """Keep the projections; those without an adapter take part as plain linear layers."""
        self.projections = projections
        self.rate = max(p.rate for p in projections)
        self.ranks = [p.rank for p in projections]

    @property
    def adapted(self) -> bool:
        """Whether any projection has an adapter."""
        return any(self.ranks)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every adapter, in order."""
        return [tensor for p in self.projections for tensor in (p.a, p.b) if tensor is not None]

    def stacked(self, dtype: torch.dtype) -> Tensor:
        """Return all A matrices as one, (sum of R, K)."""
        return torch.cat([p.a.detach() for p in self.projections if p.a is not None]).to(dtype)

    def down(self, dropped: Tensor) -> Tensor:
        """Return all low-rank states of the (masked) input ``dropped`` (T, K): (T, sum of R)."""
        return dropped @ self.stacked(dropped.dtype).T

    def outputs(self, inputs: Tensor, low: Tensor | None, scale: float) -> list[Tensor]:
        """Return every projection's output (T, N); ``scale`` is dropout's factor for what it kept."""
        lows = low.split(self.ranks, dim=1) if low is not None else [None] * len(self.ranks)
        outputs = []
        for p, part in zip(self.projections, lows, strict=True):
            output = F.linear(inputs, p.weight, p.bias)
            if part is not None and p.b is not None:
                output.addmm_(part, p.b.detach().to(output.dtype).T, alpha=p.scale * scale)
            outputs.append(output)
        return outputs

    def gradient_of_low(self, slopes: list[Tensor], scale: float) -> Tensor:
        """Return the gradient of the low-rank states, (T, sum of R), from those of the outputs."""
        parts = [
            (slope @ p.b.detach().to(slope.dtype)).mul_(p.scale * scale)
            for p, slope in zip(self.projections, slopes, strict=True)
            if p.b is not None
        ]
        return torch.cat(parts, dim=1)

    def gradients(self, slopes: list[Tensor], low: Tensor, low_slope_times_input: Tensor, scale: float) -> list[Tensor]:
        """Return the gradients of :attr:`parameters`.

        ``low_slope_times_input`` (sum of R, K) is the product of the low-rank gradient with the masked input.
        """
        found: list[Tensor] = []
        lows, stacked = low.split(self.ranks, dim=1), low_slope_times_input.split(self.ranks, dim=0)
        for p, slope, part, a_slope in zip(self.projections, slopes, lows, stacked, strict=True):
            if p.a is not None and p.b is not None:
                b_slope = (slope.T @ part).mul_(p.scale * scale)
                found += [a_slope.to(p.a.dtype), b_slope.to(p.b.dtype)]
        return found

    def input_gradient(self, slopes: list[Tensor]) -> Tensor:
        """Return the frozen layers' part of the gradient of the input, (T, K)."""
        first, *others = zip(self.projections, slopes, strict=True)
        total = first[1] @ first[0].weight
        for p, slope in others:
            total.addmm_(slope, p.weight)
        return total

    def add_adapter_gradient(self, total: Tensor, low_slope: Tensor, mask: Tensor | None) -> Tensor:
        """Add the adapters' part to ``total`` (T, K), the gradient of the input."""
        stacked = self.stacked(low_slope.dtype)
        if mask is None:
            return total.addmm_(low_slope, stacked)
        return total.addcmul_(low_slope @ stacked, mask)
