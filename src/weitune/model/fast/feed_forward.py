"""The feed-forward layer of a decoder block, forward and backward, in slices of its I inner columns.

    output = down(act(gate(x)) · up(x))

All of it is computed while the values of a slice are in the processor's cache, and no tensor (T, I) is made unless it
is kept for backward. Cost: three reads of the inner values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.model.fast.compiled import fused
from weitune.model.fast.lora_forward import AdapterGrads, GroupPass, add_masked, reference_group
from weitune.model.fast.matmul import add_linear, times
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.projection import LoraGroup, read_group

SLICE_COLUMNS = 64, 1280
"""Inner columns that are computed at once on a CPU: a multiple of the first, at most the second. With fewer, products
are slower; with more, the processor's cache does not hold a slice until it is used."""

_GATE_UP, _DOWN = ("gate_proj", "up_proj"), ("down_proj",)

WriteGrad = Callable[[Tensor, Tensor], None]
"""An activation's backward: (gradient of the output, input) → None, with the input overwritten by its gradient."""
Activation = tuple[Callable[[Tensor], Tensor], WriteGrad]


@dataclass(slots=True, eq=False)
class SavedFeedForward:
    """What forward keeps for backward besides the layer's input."""

    low_gate_up: Tensor | None
    """(T, sum of R)"""
    low_down: Tensor | None
    """(T, R)"""
    inner: list[tuple[Tensor, Tensor]]
    """gate and up, slice by slice; empty if they are to be computed again"""


@dataclass(frozen=True, slots=True, eq=False)
class FeedForward:
    """The feed-forward layer of one block."""

    module: nn.Module
    """The layer's own module"""
    gate_up: LoraGroup
    down: LoraGroup
    activation: Activation
    mixes_tokens: bool = False
    carried: Sequence[Hashable] = ()

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        return self.gate_up, self.down

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.gate_up.parameters + self.down.parameters

    def begin(self, context: BlockContext) -> FeedForwardPass:
        gate_up = GroupPass.begin(self.gate_up, context.dropout)
        down = GroupPass.begin(self.down, context.dropout)
        return FeedForwardPass(self.activation, gate_up, down, context.keep_feed_forward)

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        gate, up = reference_group(self.gate_up, x, context.dropout)
        (output,) = reference_group(self.down, self.activation[0](gate) * up, context.dropout)
        return output

    def with_adapters(self) -> FeedForward | None:
        gate_up, down = read_group(self.module, _GATE_UP), read_group(self.module, _DOWN)
        return replace(self, gate_up=gate_up, down=down) if gate_up and down else None


def read_feed_forward(module: Any) -> FeedForward | None:
    """Return the feed-forward layer that ``module`` computes, or None if it has not the parts that are known here."""
    gate_up, down = read_group(module, _GATE_UP), read_group(module, _DOWN)
    config = getattr(module, "config", None)
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    activation = ACTIVATIONS.get(name or "")
    return FeedForward(module, gate_up, down, activation) if gate_up and down and activation else None


@dataclass(frozen=True, slots=True, eq=False)
class FeedForwardPass:
    """The feed-forward layer in one pass."""

    activation: Activation
    gate_up: GroupPass
    down: GroupPass
    keep_inner: bool
    """keep gate and up for backward"""

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None = None) -> tuple[Tensor, SavedFeedForward]:
        activate, _ = self.activation
        gate_up, down = _GateUp(self.gate_up, x), _Down(self.down, x, base)
        inner = []
        for columns in _slices(x, self.down.group.inputs):
            gate, up = gate_up.columns(columns)
            down.add(_gated(gate, up, activate), columns)
            if self.keep_inner:
                inner.append((gate, up))
        return down.result(), SavedFeedForward(gate_up.low, down.low, inner)

    def backward(
        self, grad: Tensor, x: Tensor, saved: SavedFeedForward, *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Without ``retain`` the inner values in ``saved`` are overwritten, and freed one after another."""
        activate, write_grad = self.activation
        gate_up = _GateUp(self.gate_up, x, saved.low_gate_up)
        gate_up_grads, down_grads = _GateUpGrads(gate_up), _DownGrads(self.down, grad, saved.low_down)
        inner = saved.inner[::-1]
        if not retain:
            saved.inner = []
        for columns in _slices(x, self.down.group.inputs):
            gate, up = inner.pop() if inner else gate_up.columns(columns)
            gate = gate.clone() if retain else gate
            activated = activate(gate)
            grad_inner, grad_dropped, mask = down_grads.columns(activated, up, columns)
            _write_grads(grad_inner, gate, up, activated, grad_dropped, mask, write_grad)
            gate_up_grads.add([gate, grad_inner], columns)
        grad_x, adapters = gate_up_grads.result()
        return grad_x, adapters.result() + down_grads.result()


class _GateUp:
    """Computes gate and up from the normalised input (T, C), some columns at a time."""

    def __init__(self, group_pass: GroupPass, normed: Tensor, low: Tensor | None = None) -> None:
        self.group_pass, self.normed = group_pass, normed
        self.dropped, self.factors = group_pass.drop(normed), group_pass.factors(normed)
        self.low = self.dropped @ self.factors.a.T if self.factors and low is None else low

    def columns(self, columns: slice) -> tuple[Tensor, Tensor]:
        gate, up = outputs = self.group_pass.frozen(self.normed, self.dropped, columns)
        if self.factors is not None and self.low is not None:
            self.factors.columns(columns).add_to(outputs, self.low)
        return gate, up


class _GateUpGrads:
    """Collects the gradients of the normalised input (T, C) and of the adapters from those of gate and up."""

    def __init__(self, gate_up: _GateUp) -> None:
        self._gate_up, self._adapters = gate_up, AdapterGrads(gate_up.group_pass)
        self._normed, self._dropped = torch.zeros_like(gate_up.normed), torch.zeros_like(gate_up.normed)
        self._low = torch.zeros_like(gate_up.low) if gate_up.low is not None else None

    def add(self, grads: list[Tensor], columns: slice) -> None:
        gate_up, group_pass = self._gate_up, self._gate_up.group_pass
        if gate_up.factors and gate_up.low is not None and self._low is not None:
            self._low += gate_up.factors.columns(columns).grad_of_low(grads)
            self._adapters.add_b(gate_up.low, grads)
            self._adapters.add_magnitudes(gate_up.dropped, grads, columns)
            group_pass.add_grad_of_dropped(self._dropped, grads, columns)
        group_pass.group.add_grad_of_input(self._normed, grads, columns)

    def result(self) -> tuple[Tensor, AdapterGrads]:
        gate_up, normed = self._gate_up, self._normed
        if gate_up.factors and self._low is not None:
            self._adapters.add_a(self._low, gate_up.dropped)
            self._dropped.addmm_(self._low, gate_up.factors.a)
            add_masked(normed, self._dropped, gate_up.group_pass.mask(len(normed)))
        return normed, self._adapters


class _Down:
    """Adds down's products with slices of the inner values to ``base`` (T, C), or to zeros, in memory of its own."""

    def __init__(self, group_pass: GroupPass, x: Tensor, base: Tensor | None) -> None:
        (self._frozen,), self._pass = group_pass.group.projections, group_pass
        self._mask, self._factors = group_pass.mask(len(x)), group_pass.factors(x)
        self.low = x.new_zeros(len(x), len(self._factors.a)) if self._factors else None
        bias = self._frozen.bias(x.dtype)
        base = x.new_zeros(()) if base is None else base
        self._output = base + bias if bias is not None else base.expand(len(x), self._frozen.shape[0]).clone()

    def add(self, inner: Tensor, columns: slice) -> None:
        """Add the product of ``inner``, which is overwritten."""
        add_linear(self._output, inner, self._frozen.weight(inner.dtype, inputs=columns))
        if self._factors and self.low is not None:
            dropped = inner if self._mask is None else inner.mul_(self._mask[:, columns])
            self._pass.add_frozen_of_dropped([self._output], dropped, inputs=columns)
            self.low.addmm_(dropped, self._factors.a[:, columns].T)

    def result(self) -> Tensor:
        if self._factors and self.low is not None:
            self._factors.add_to([self._output], self.low)
        return self._output


class _DownGrads:
    """Computes the gradients of slices of the inner values from that of the output, and those of down's adapter."""

    def __init__(self, group_pass: GroupPass, grad: Tensor, low: Tensor | None) -> None:
        (self._frozen,), self._pass = group_pass.group.projections, group_pass
        self._mask, self._factors = group_pass.mask(len(grad)), group_pass.factors(grad)
        self._grad, self._low, self._adapters = grad, low, AdapterGrads(group_pass)
        self._grad_low = self._factors.grad_of_low([grad]) if self._factors else None

    def columns(self, activated: Tensor, up: Tensor, columns: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the gradients of the inner values and of what dropout leaves of them for the adapter, and its mask."""
        grad_inner = times(self._grad, self._frozen.weight(self._grad.dtype, inputs=columns))
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
def _gated(gate: Tensor, up: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
    return activate(gate).mul_(up)


@fused
def _dropped(activated: Tensor, up: Tensor, mask: Tensor | None) -> Tensor:
    inner = activated * up
    return inner if mask is None else inner.mul_(mask)


@fused
def _write_grads(
    grad: Tensor, gate: Tensor, up: Tensor, act: Tensor, dropped: Tensor | None, mask: Tensor | None, write: WriteGrad
) -> None:
    """Overwrite ``gate`` with its gradient, and ``grad``, that of the inner values, with the gradient of up.

    ``act`` is act(gate), and ``dropped`` the gradient of what dropout leaves of the inner values for the adapter.
    """
    if dropped is not None:
        add_masked(grad, dropped, mask)
    write(grad * up, gate)
    grad.mul_(act)


def _slices(x: Tensor, width: int) -> Iterator[slice]:
    """Cut ``width`` columns into slices of about the same width; ``x`` has the device and dtype of the values."""
    unit, most = SLICE_COLUMNS
    step = width
    if x.device.type == "cpu" and x.dtype.itemsize >= 4:  # sums over slices would be rounded too often in 16 bits
        count = -(-width // most)
        step = -(-width // (count * unit)) * unit
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


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
