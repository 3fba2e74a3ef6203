"""The products of a feed-forward layer with slices of its I inner columns, and the gradients of its adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from weitune.model.fast.compiled import fused
from weitune.model.fast.lora_forward import AdapterGrads, GroupPass, add_masked


class GateUp:
    """Computes gate and up, or what there is without a gate, from the input (T, C), some columns at a time."""

    def __init__(self, group_pass: GroupPass, normed: Tensor, low: Tensor | None = None) -> None:
        self.group_pass, self.normed = group_pass, normed
        self.dropped, self.factors = group_pass.drop(normed), group_pass.factors(normed)
        self.low = self.dropped @ self.factors.a.T if self.factors and low is None else low

    def columns(self, columns: slice) -> list[Tensor]:
        outputs = self.group_pass.frozen(self.normed, self.dropped, columns)
        if self.factors is not None and self.low is not None:
            self.factors.columns(columns).add_to(outputs, self.low)
        return outputs


class GateUpGrads:
    """Collects the gradients of the normalised input (T, C) and of the adapters from those of gate and up."""

    def __init__(self, gate_up: GateUp, needs_input: bool) -> None:
        self._gate_up, self._adapters = gate_up, AdapterGrads(gate_up.group_pass)
        self._normed = torch.zeros_like(gate_up.normed) if needs_input else None
        self._dropped = torch.zeros_like(gate_up.normed) if needs_input and gate_up.factors else None
        self._low = torch.zeros_like(gate_up.low) if gate_up.low is not None else None

    def add(self, grads: list[Tensor], columns: slice) -> None:
        gate_up, group_pass = self._gate_up, self._gate_up.group_pass
        if gate_up.factors and gate_up.low is not None and self._low is not None:
            self._low += gate_up.factors.columns(columns).grad_of_low(grads)
            self._adapters.add_b(gate_up.low, grads)
            self._adapters.add_magnitudes(gate_up.dropped, grads, columns)
            if self._dropped is not None:
                group_pass.add_grad_of_dropped(self._dropped, grads, columns)
        if self._normed is not None:
            self._normed = group_pass.group.add_grad_of_input(self._normed, grads, columns)

    def result(self) -> tuple[Tensor | None, list[Tensor]]:
        gate_up, normed = self._gate_up, self._normed
        if gate_up.factors and self._low is not None:
            self._adapters.add_a(self._low, gate_up.dropped)
            if normed is not None and self._dropped is not None:
                self._dropped.addmm_(self._low, gate_up.factors.a)
                add_masked(normed, self._dropped, gate_up.group_pass.mask(len(normed)))
        return normed, self._adapters.result()


class Down:
    """Adds down's products with slices of the inner values to ``base`` (T, C), or to zeros, in memory of its own."""

    def __init__(self, group_pass: GroupPass, x: Tensor, base: Tensor | None) -> None:
        (self._frozen,), self._pass = group_pass.group.projections, group_pass
        self._mask, self._factors = group_pass.mask(len(x)), group_pass.factors(x)
        self.low = x.new_zeros(len(x), len(self._factors.a)) if self._factors else None
        bias = self._frozen.bias(x.dtype)
        base = x.new_zeros(len(x), self._frozen.shape[0]) if base is None else base.clone()
        self._output = base if bias is None else base.add_(bias)

    def add(self, inner: Tensor, columns: slice) -> None:
        """Add the product of ``inner``, which is overwritten."""
        self._output = self._frozen.add_linear(self._output, inner, columns)
        if self._factors and self.low is not None:
            dropped = inner if self._mask is None else inner.mul_(self._mask[:, columns])
            self._pass.add_frozen_of_dropped([self._output], dropped, inputs=columns)
            self.low.addmm_(dropped, self._factors.a[:, columns].T)

    def result(self) -> Tensor:
        if self._factors and self.low is not None:
            self._factors.add_to([self._output], self.low)
        return self._output


class DownGrads:
    """Computes the gradients of slices of the inner values from that of the output, and those of down's adapter."""

    def __init__(self, group_pass: GroupPass, grad: Tensor, low: Tensor | None) -> None:
        (self._frozen,), self._pass = group_pass.group.projections, group_pass
        self._mask, self._factors = group_pass.mask(len(grad)), group_pass.factors(grad)
        self._grad, self._low, self._adapters = grad, low, AdapterGrads(group_pass)
        self._grad_low = self._factors.grad_of_low([grad]) if self._factors else None

    def columns(
        self, activated: Tensor, up: Tensor | None, columns: slice
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the gradients of the inner values and of what dropout leaves of them for the adapter, and its mask."""
        grad_inner = self._frozen.times(self._grad, columns)
        if self._factors is None or self._grad_low is None:
            return grad_inner, None, None
        mask = None if self._mask is None else self._mask[:, columns]
        dropped = _dropped(activated, up, mask)
        self._adapters.add_a(self._grad_low, dropped)
        self._adapters.add_magnitudes(dropped, [self._grad], inputs=columns)
        grad_dropped = self._grad_low @ self._factors.a[:, columns]
        self._pass.add_grad_of_dropped(grad_dropped, [self._grad], inputs=columns)
        return grad_inner, grad_dropped, mask

    def result(self) -> list[Tensor]:
        if self._low is not None:
            self._adapters.add_b(self._low, [self._grad])
        return self._adapters.result()


@fused
def _dropped(activated: Tensor, up: Tensor | None, mask: Tensor | None) -> Tensor:
    inner = activated.clone() if up is None else activated * up
    return inner if mask is None else inner.mul_(mask)
