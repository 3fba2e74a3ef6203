"""Activation functions with their gradients written in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], None]]
"""A function, and its backward: (gradient of the output, input) → None, with the input overwritten by its gradient."""


def _silu_backward(grad: Tensor, x: Tensor) -> None:
    torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=x)


def _gelu_backward(approximate: str) -> Callable[[Tensor, Tensor], None]:
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
