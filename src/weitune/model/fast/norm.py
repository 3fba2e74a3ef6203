"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467) with its backward written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FUSED = hasattr(torch.ops.aten, "_fused_rms_norm_backward")
"""Whether this version of torch has RMSNorm as one kernel for GPUs."""


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """x / sqrt(mean(x²) + eps) · weight."""

    weight: Tensor
    """(C,)"""
    epsilon: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised ``x`` (T, C), and 1 / root mean square of each row (T, 1) in float32."""
        if x.is_cuda and _FUSED:
            normed, inverse = torch.ops.aten._fused_rms_norm(x, [x.shape[1]], self.weight.to(x.dtype), self.epsilon)
            return normed, inverse
        exact = x.float() if x.dtype is not torch.float64 else x
        inverse = (exact.square().mean(-1, keepdim=True) + self.epsilon).rsqrt_()
        return (exact * inverse).to(x.dtype).mul_(self.weight), inverse

    def reference(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.epsilon).rsqrt() * self.weight

    def backward(self, grad: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        """Return the gradient of ``x`` from that of the normalised ``x``; ``inverse`` is what forward returned."""
        if x.is_cuda and _FUSED:
            grad_x: Tensor = torch.ops.aten._fused_rms_norm_backward(
                grad, x, [x.shape[1]], inverse, self.weight.to(x.dtype), [True, False]
            )[0]
            return grad_x
        exact = x.float() if x.dtype is not torch.float64 else x
        weighted = (grad * self.weight).to(exact.dtype)
        mean = (weighted * exact).mean(-1, keepdim=True).mul_(inverse.pow(3))
        return weighted.mul_(inverse).addcmul_(exact, mean, value=-1).to(x.dtype)


def read_norm(module: Any) -> Norm | None:
    """Return the weight and epsilon of an RMSNorm, or None if ``module`` computes anything else.

    Some families store the weight, others its difference from 1; the outputs of the module show which.
    """
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if module is None or weight is None or epsilon is None or getattr(module, "bias", None) is not None:
        return None
    sample = torch.linspace(-1, 1, weight.shape[0], device=weight.device, dtype=weight.dtype)[None]
    with torch.no_grad():
        expected = module(sample).float()
        for candidate in (weight.detach(), weight.detach() + 1):
            norm = Norm(candidate, float(epsilon))
            if torch.allclose(norm.forward(sample)[0].float(), expected, rtol=1e-2, atol=1e-3):
                return norm
    return None
