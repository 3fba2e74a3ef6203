"""How an expert joins gate and up: act(gate) · up, or gpt-oss's clamped gate; with their backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor

from weitune.model.fast.channel.activation import ACTIVATIONS, Activation
from weitune.model.fast.compiled import fused


class Gate(Protocol):
    """A function of gate and up, both (n, I)."""

    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return the inner values (n, I)."""
        ...

    def write_grads(self, grad: Tensor, gate: Tensor, up: Tensor) -> None:
        """Overwrite ``gate`` and ``up`` with their gradients; ``grad`` (n, I) is that of the inner values."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ActivatedGate:
    """act(gate) · up."""

    activation: Activation

    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return _activated(gate, up, self.activation)

    def write_grads(self, grad: Tensor, gate: Tensor, up: Tensor) -> None:
        _write_activated_grads(gate, up, grad, self.activation)


@dataclass(frozen=True, slots=True, eq=False)
class ClampedGate:
    """(clamp(up, -L, L) + 1) · g · sigmoid(α g)  with g = min(gate, L)  (gpt-oss)."""

    alpha: float
    limit: float

    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return _clamped(gate, up, self.alpha, self.limit)

    def write_grads(self, grad: Tensor, gate: Tensor, up: Tensor) -> None:
        _write_clamped_grads(gate, up, grad, self.alpha, self.limit)


def halves(gate_up: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Return gate and up, views of ``gate_up`` (n, 2 I): one after the other, or by turns."""
    if interleaved:
        return gate_up[:, ::2], gate_up[:, 1::2]
    gate, up = gate_up.chunk(2, dim=1)
    return gate, up


def read_gate(experts: Any, width: int) -> tuple[Gate, bool] | None:
    """Return the gate of the module ``experts`` with ``width`` inner columns, and whether gate and up lie by turns.

    Known gates are tried on a few numbers; None if none agrees.
    """
    few = torch.linspace(-9, 9, 3 * 2 * width).view(3, 2 * width)
    sample = torch.cat([few, 100 * few])  # large ones show limits
    with torch.no_grad():
        expected = _own_gate(experts, sample)
        if expected is None:
            return None
        for gate, interleaved in product(_candidates(experts), (False, True)):
            if torch.allclose(gate.inner(*halves(sample, interleaved)), expected, rtol=1e-4, atol=1e-5):
                return gate, interleaved
    return None


def _own_gate(experts: Any, gate_up: Tensor) -> Tensor | None:
    if hasattr(experts, "_apply_gate"):
        inner: Tensor = experts._apply_gate(gate_up)
        return inner
    if not hasattr(experts, "act_fn"):
        return None
    gate, up = gate_up.chunk(2, dim=1)
    activated: Tensor = experts.act_fn(gate) * up
    return activated


def _candidates(experts: Any) -> Iterator[Gate]:
    yield from (ActivatedGate(activation) for activation in dict.fromkeys(ACTIVATIONS.values()))
    if hasattr(experts, "alpha") and hasattr(experts, "limit"):
        yield ClampedGate(float(experts.alpha), float(experts.limit))


@fused
def _activated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    return activation[0](gate).mul_(up)


@fused
def _write_activated_grads(gate: Tensor, up: Tensor, grad: Tensor, activation: Activation) -> None:
    activate, write_grad = activation
    grad_up = activate(gate).mul_(grad)
    write_grad(grad * up, gate)
    up.copy_(grad_up)


@fused
def _clamped(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    clamped = gate.clamp(max=limit)
    return (clamped * alpha).sigmoid() * clamped * (up.clamp(-limit, limit) + 1)


@fused
def _write_clamped_grads(gate: Tensor, up: Tensor, grad: Tensor, alpha: float, limit: float) -> None:
    clamped, raised = gate.clamp(max=limit), up.clamp(-limit, limit) + 1
    share = (clamped * alpha).sigmoid_()
    slope = (1 - share).mul_(clamped * alpha).add_(1).mul_(share)  # of g · sigmoid(α g)
    up.copy_((clamped * share).mul_(grad).mul_(up.abs() <= limit))
    gate.copy_(raised.mul_(slope).mul_(grad).mul_(gate <= limit))
