"""The feed-forward layer of a decoder block, forward and backward, in slices of its I inner columns.

    output = down(act(gate(x)) · up(x)), or down(act(up(x)))

Constant factors of the gate and of the output (Falcon-H1) are part of the activation.

All of it is computed while the values of a slice are in the processor's cache, and no tensor (T, I) is made unless it
is kept for backward. Cost: three reads of the inner values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weitune.model.fast.channel.activation import ACTIVATIONS, Activation, WriteGrad, own_activation, scaled
from weitune.model.fast.channel.sliced import Down, DownGrads, GateUp, GateUpGrads
from weitune.model.fast.compiled import fused
from weitune.model.fast.lora_forward import GroupPass, add_masked, reference_group
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.projection import LoraGroup, read_group, read_projection
from weitune.model.fast.stand_in import UNSUITABLE, with_stand_ins
from weitune.model.storage.weight_storage import ALL

SLICE_COLUMNS = 64, 1280
"""Inner columns that are computed at once on a CPU: a multiple of the first, at most the second. With fewer, products
are slower; with more, the processor's cache does not hold a slice until it is used."""


class Layers(NamedTuple):
    """The names of a feed-forward layer's linear layers."""

    gate_up: tuple[str, ...]
    """the gate's first; only one if there is no gate"""
    down: str
    halves: bool
    """whether gate and up are the halves of one layer's outputs"""


@dataclass(slots=True, eq=False)
class SavedFeedForward:
    """What forward keeps for backward besides the layer's input."""

    low_gate_up: Tensor | None
    """(T, sum of R)"""
    low_down: Tensor | None
    """(T, R)"""
    inner: list[list[Tensor]]
    """gate and up, slice by slice; empty if they are to be computed again"""


@dataclass(frozen=True, slots=True, eq=False)
class FeedForward:
    """The feed-forward layer of one block."""

    module: nn.Module
    """The layer's own module"""
    layers: Layers
    gate_up: LoraGroup
    """of two projections, or of one if there is no gate"""
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
        gate, *up = reference_group(self.gate_up, x, context.dropout)
        inner = self.activation[0](gate)
        (output,) = reference_group(self.down, inner * up[0] if up else inner, context.dropout)
        return output

    def with_adapters(self) -> FeedForward | None:
        groups = _read_groups(self.module, self.layers)
        return replace(self, gate_up=groups[0], down=groups[1]) if groups else None


def read_feed_forward(module: Any) -> FeedForward | None:
    """Return the feed-forward layer that ``module`` computes, or None if it computes anything else.

    Its own forward runs with stand-ins for the linear layers: the one that reads what the others have given, joined by
    an activation, is down.
    """
    if not isinstance(module, nn.Module) or next(module.parameters(recurse=False), None) is not None:
        return None
    parts = dict(module.named_children())
    widths = {name: p.shape[0] for name, part in parts.items() if (p := read_projection(part))}
    watched = _watch(module, widths) if len(widths) in (2, 3) else None
    if watched is None:
        return None
    outputs, down, inner, outside = watched
    if outside != 1 and getattr(read_projection(parts[down]), "layer", module).bias is not None:
        return None
    others = [own_activation(part) for name, part in parts.items() if name not in widths]
    activations = [*ACTIVATIONS.values(), *(activation for activation in others if activation)]
    for names in permutations(outputs):
        halves = len(names) == 1 and outputs[names[0]].shape[-1] == 2 * inner.shape[-1]
        gate, *up = outputs[names[0]].chunk(2, dim=-1) if halves else [outputs[name] for name in names]
        for activation, inside in product(activations, _factors(module)):
            activated = activation[0](gate * inside)
            if torch.allclose(activated * up[0] if up else activated, inner, rtol=1e-6):
                layers = Layers(names, down, halves)
                groups = _read_groups(module, layers)
                return FeedForward(module, layers, *groups, scaled(activation, inside, outside)) if groups else None
    return None


def _factors(module: nn.Module) -> list[float]:
    """Return 1 and the numbers that ``module`` may multiply its gate by."""
    return [1.0, *(value for value in vars(module).values() if isinstance(value, float))]


def _watch(module: nn.Module, widths: dict[str, int]) -> tuple[dict[str, Tensor], str, Tensor, float] | None:
    """Run ``module`` with stand-ins for its linear layers, which have so many outputs.

    The outputs (1, 2, N) are small and large numbers, since large ones show limits. Returns those of the layers that
    read the input of ``module``, the name of the layer whose output it returns, what that layer reads, and the factor
    with which its output is returned. None if there are others.
    """
    given: dict[str, Tensor] = {}
    device = next(module.parameters()).device
    drawn = {name: _drawn(width, seed).to(device) for seed, (name, width) in enumerate(widths.items())}
    outputs = {name: torch.cat([small, 100 * small], dim=1) for name, small in drawn.items()}

    def stand_in(name: str) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            given[name] = x
            return outputs[name]

        return forward

    x = _drawn(1, len(widths)).to(device)
    try:
        with torch.no_grad():
            result = type(module).forward(with_stand_ins(module, {name: stand_in(name) for name in widths}), x)
    except UNSUITABLE:
        return None
    if not isinstance(result, Tensor):
        return None
    factors = {name: _ratio(result, output) for name, output in outputs.items()}
    down, factor = next(((name, factor) for name, factor in factors.items() if factor), (None, 0.0))
    others = {name: output for name, output in outputs.items() if name != down and given.get(name) is x}
    return (others, down, given[down], factor) if down in given and len(others) == len(widths) - 1 else None


def _ratio(a: Tensor, b: Tensor) -> float:
    """Return the number c for which ``a`` is c · ``b``, up to rounding, or 0 if there is none."""
    if a.equal(b):
        return 1.0
    if a.shape != b.shape:
        return 0.0
    c = float((a * b).sum() / b.square().sum())
    return c if torch.allclose(a, c * b, rtol=1e-9) else 0.0


def _drawn(width: int, seed: int) -> Tensor:
    return torch.randn(1, 1, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _read_groups(module: nn.Module, layers: Layers) -> tuple[LoraGroup, LoraGroup] | None:
    gate_up, down = read_group(module, layers.gate_up), read_group(module, [layers.down])
    if gate_up is None or down is None:
        return None
    if layers.halves:
        gate_up = LoraGroup(gate_up.projections[0].split([down.inputs] * 2))
    return gate_up, LoraGroup(down.projections, reads_slices=True)


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
        gate_up, down = GateUp(self.gate_up, x), Down(self.down, x, base)
        inner = []
        for columns in _slices(x, self.down.group.inputs):
            parts = gate_up.columns(columns)
            down.add(_gated(parts[0], parts[1] if len(parts) > 1 else None, activate), columns)
            if self.keep_inner:
                inner.append(parts)
        return down.result(), SavedFeedForward(gate_up.low, down.low, inner)

    def backward(
        self, grad: Tensor, x: Tensor, saved: SavedFeedForward, *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Without ``retain`` the inner values in ``saved`` are overwritten, and freed one after another."""
        activate, write_grad = self.activation
        gate_up = GateUp(self.gate_up, x, saved.low_gate_up)
        gate_up_grads, down_grads = GateUpGrads(gate_up, needs_input), DownGrads(self.down, grad, saved.low_down)
        inner = saved.inner[::-1]
        if not retain:
            saved.inner = []
        for columns in _slices(x, self.down.group.inputs):
            gate, *others = inner.pop() if inner else gate_up.columns(columns)
            up = others[0] if others else None
            gate = gate.clone() if retain else gate
            activated = activate(gate)
            grad_inner, grad_dropped, mask = down_grads.columns(activated, up, columns)
            _write_grads(grad_inner, gate, up, activated, grad_dropped, mask, write_grad)
            gate_up_grads.add([gate] if up is None else [gate, grad_inner], columns)
        grad_x, gate_up_adapters = gate_up_grads.result()
        return grad_x, gate_up_adapters + down_grads.result()


@fused
def _gated(gate: Tensor, up: Tensor | None, activate: Callable[[Tensor], Tensor]) -> Tensor:
    activated = activate(gate)
    return activated if up is None else activated.mul_(up)


@fused
def _write_grads(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    act: Tensor,
    dropped: Tensor | None,
    mask: Tensor | None,
    write: WriteGrad,
) -> None:
    """Overwrite ``gate`` with its gradient, and ``grad``, that of the inner values, with the gradient of ``up``.

    ``act`` is act(gate), and ``dropped`` the gradient of what dropout leaves of the inner values for the adapter.
    """
    if dropped is not None:
        add_masked(grad, dropped, mask)
    if up is None:
        write(grad, gate)
    else:
        write(grad * up, gate)
        grad.mul_(act)


def _slices(x: Tensor, width: int) -> Iterator[slice]:
    """Cut ``width`` columns into slices of about the same width; ``x`` has the device and dtype of the values."""
    unit, most = SLICE_COLUMNS
    step = width
    if x.device.type == "cpu" and x.dtype.itemsize >= 4:  # sums over slices would be rounded too often in 16 bits
        count = -(-width // most)
        step = -(-width // (count * unit)) * unit
    if step >= width:
        yield ALL
        return
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))
