"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467) and LayerNorm (Ba et al., arXiv 1607.06450), with their backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast.compiled import fused

_FUSED = hasattr(torch.ops.aten, "_fused_rms_norm_backward")
"""Whether this version of torch has RMSNorm as one kernel for GPUs."""


class Norm(Protocol):
    """Normalises each row of x (T, C)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return the normalised ``x``, and what :meth:`backward` needs besides ``x``: a few numbers for each row."""
        ...

    def backward(self, grad: Tensor, x: Tensor, statistics: Any) -> Tensor:
        """Return the gradient of ``x`` in memory of its own, from that of the normalised ``x``."""
        ...

    def reference(self, x: Tensor) -> Tensor:
        """Return the normalised ``x`` as models compute it, differentiable by autograd."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RMSNorm:
    """x / sqrt(mean(x²) + eps) · weight."""

    weight: Tensor
    """(C,)"""
    epsilon: float
    exact: bool = False
    """Whether the product with the weight is rounded only once, as Gemma and OLMo do; it matters in 16 bits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised ``x`` (T, C), and 1 / root mean square of each row (T, 1) in float32."""
        if self._has_kernel(x):
            normed, inverse = torch.ops.aten._fused_rms_norm(x, [x.shape[1]], self.weight.to(x.dtype), self.epsilon)
            return normed, inverse
        if self.exact:
            return _exact_rms_norm(x, self.weight, self.epsilon)
        exact = x.float() if x.dtype is not torch.float64 else x
        inverse = (exact.square().mean(-1, keepdim=True) + self.epsilon).rsqrt_()
        return (exact * inverse).to(x.dtype).mul_(self.weight), inverse

    def backward(self, grad: Tensor, x: Tensor, statistics: Tensor) -> Tensor:
        if self._has_kernel(x):
            grad_x: Tensor = torch.ops.aten._fused_rms_norm_backward(
                grad, x, [x.shape[1]], statistics, self.weight.to(x.dtype), [True, False]
            )[0]
            return grad_x
        if self.exact:
            return _exact_rms_norm_backward(grad, x, self.weight, statistics)
        exact = x.float() if x.dtype is not torch.float64 else x
        weighted = (grad * self.weight).to(exact.dtype)
        mean = (weighted * exact).mean(-1, keepdim=True).mul_(statistics.pow(3))
        return weighted.mul_(statistics).addcmul_(exact, mean, value=-1).to(x.dtype)

    def reference(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.epsilon).rsqrt() * self.weight

    def _has_kernel(self, x: Tensor) -> bool:
        return x.is_cuda and _FUSED and not (self.exact and x.dtype.itemsize == 2)


@fused
def _exact_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    exact = x.float() if x.dtype is not torch.float64 else x
    inverse = (exact.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (exact * inverse).mul_(weight).to(x.dtype), inverse


@fused
def _exact_rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    exact = x.float() if x.dtype is not torch.float64 else x
    weighted = grad.to(exact.dtype) * weight
    mean = (weighted * exact).mean(-1, keepdim=True).mul_(inverse.pow(3))
    return weighted.mul_(inverse).addcmul_(exact, mean, value=-1).to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """(x - mean(x)) / sqrt(var(x) + eps) · weight + bias."""

    weight: Tensor
    """(C,)"""
    bias: Tensor | None
    """(C,)"""
    epsilon: float

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the normalised ``x`` (T, C), and mean and 1 / deviation of each row."""
        normed, mean, inverse = torch.ops.aten.native_layer_norm(x, [x.shape[1]], *self._vectors(x), self.epsilon)
        return normed, (mean, inverse)

    def backward(self, grad: Tensor, x: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        grad_x: Tensor = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), x, [x.shape[1]], *statistics, *self._vectors(x), [True, False, False]
        )[0]
        return grad_x

    def reference(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, [x.shape[1]], *self._vectors(x), self.epsilon)

    def _vectors(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)


def read_norm(module: Any) -> Norm | None:
    """Return what a module that normalises vectors computes, or None if it is no such module.

    Some families store the weight, others its difference from 1. Some subtract the mean without having a bias, and some
    round once where others round twice. The outputs of the module show which: the nearest candidate is taken.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    sample = torch.linspace(-1, 2, weight.shape[0], device=weight.device, dtype=weight.dtype)[None]
    with torch.no_grad():
        expected = module(sample).float()
        candidates: list[Norm] = [LayerNorm(weight.detach(), bias if bias is None else bias.detach(), epsilon)]
        if bias is None:
            wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            rms = [RMSNorm(weight.detach(), epsilon), RMSNorm(wide, epsilon, True), RMSNorm(wide + 1, epsilon, True)]
            candidates = [*rms, *candidates]
        errors = [float((norm.forward(sample)[0].float() - expected).abs().max()) for norm in candidates]
    best = min(range(len(candidates)), key=errors.__getitem__)
    return candidates[best] if errors[best] < 1e-3 + 1e-2 * float(expected.abs().max()) else None
