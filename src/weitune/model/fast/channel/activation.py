"""Activations, each with its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WriteGrad = Callable[[Tensor, Tensor], None]
"""An activation's backward: (gradient of the output, input) → None, with the input overwritten by its gradient."""
Activation = tuple[Callable[[Tensor], Tensor], WriteGrad]


def _silu_backward(grad: Tensor, x: Tensor) -> None:
    torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=x)


def _gelu_backward(approximate: str) -> WriteGrad:
    def backward(grad: Tensor, x: Tensor) -> None:
        torch.ops.aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=x)

    return backward


ACTIVATIONS: dict[str, Activation] = {
    "silu": (F.silu, _silu_backward),
    "swish": (F.silu, _silu_backward),
    "gelu": (F.gelu, _gelu_backward("none")),
    "gelu_pytorch_tanh": (lambda x: F.gelu(x, approximate="tanh"), _gelu_backward("tanh")),
}
"""By the names that transformers' configurations use."""


def find_activation(function: Any) -> Activation | None:
    """Return the activation that computes what ``function`` does, or None if none is known."""
    if not callable(function):
        return None
    sample = torch.linspace(-4, 4, 17)
    expected = function(sample)
    return next((each for each in ACTIVATIONS.values() if torch.allclose(each[0](sample), expected)), None)


def scaled(activation: Activation, inside: float, outside: float) -> Activation:
    """Return ``outside`` · act(``inside`` · x)."""
    if inside == outside == 1:
        return activation
    activate, write = activation

    def write_grad(grad: Tensor, x: Tensor) -> None:
        write(grad * (inside * outside), x.mul_(inside))

    return lambda x: activate(x * inside).mul_(outside), write_grad


def own_activation(module: nn.Module) -> Activation | None:
    """Return the activation that ``module`` computes, differentiated by autograd, which computes it once more.

    None if it is no function of single numbers.
    """
    device = next((parameter.device for parameter in module.parameters()), None)
    sample = torch.linspace(-4, 4, 18, dtype=torch.float64, device=device)[None]
    with torch.no_grad():
        try:
            whole, part = module(sample), module(sample[:, ::2])
        except (TypeError, RuntimeError, ValueError):
            return None
    if whole is sample or whole.shape != sample.shape or not torch.equal(whole[:, ::2], part):
        return None

    def write_grad(grad: Tensor, x: Tensor) -> None:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            activated = module(leaf)
        x.copy_(torch.autograd.grad(activated, leaf, grad)[0])

    return module, write_grad
