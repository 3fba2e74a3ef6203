"""Which experts a token goes to, and with what weight: the model's own router, differentiated by autograd.

Routers differ much from family to family (softmax before or after the choice, sigmoids, groups, corrections) and cost
next to nothing: E numbers a token. So the module itself is called. It is frozen, but its input has a gradient.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """A module that returns, in any order, the weights (T, k) of the chosen experts and their numbers (T, k).

    Or, as Llama 4's does, a weight for each of E experts (T, E), all but ``top_k`` of which are 0.
    """

    module: Any
    owner: nn.Module
    """The mixture that the router is a part of"""
    experts: int
    """E"""
    arguments: tuple[str, ...] = ()
    """What it takes besides the input: names of tensors of the owner"""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (T, k) in the dtype of ``x`` and numbers of experts (T, k) for ``x`` (T, C)."""
        arguments = (x, *(getattr(self.owner, name) for name in self.arguments))
        output = functional_call(self.module, self._widened(x.dtype), arguments)
        index = next((each for each in output if not each.is_floating_point()), None)
        if index is not None:
            weights = next(each for each in output if each.is_floating_point() and each.shape == index.shape)
            return weights.to(x.dtype), index
        dense = output[0]
        index = dense.detach().topk(self.module.top_k, dim=1).indices
        return dense.gather(1, index).to(x.dtype), index

    def grad(self, grad_weights: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of ``x`` (T, C) from that of the weights (T, k). Computes the weights again."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            weights, _ = self.route(leaf)
            (grad,) = torch.autograd.grad(weights, leaf, grad_weights)
        return grad

    def _widened(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the parameters that are stored more coarsely than ``dtype``, in ``dtype``."""
        named = self.module.named_parameters()
        return {name: p.to(dtype) for name, p in named if p.dtype.itemsize < dtype.itemsize}


def read_router(module: Any, owner: nn.Module, experts: int, sample: Tensor) -> Router | None:
    """Return the router ``module`` of the mixture ``owner``, or None if it returns something else for ``sample``.

    A router that draws random numbers in training is none that is known here.
    """
    jitters = [value for each in (module, owner) for name, value in vars(each).items() if "jitter" in name]
    taken = list(inspect.signature(module.forward).parameters)[1:]
    if any(jitters) or not all(isinstance(getattr(owner, name, None), Tensor) for name in taken):
        return None
    router = Router(module, owner, experts, tuple(taken))
    try:
        weights, index = router.route(sample)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, StopIteration):
        return None
    return router if weights.shape == index.shape and len(index) == len(sample) else None
