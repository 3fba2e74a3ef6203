"""A decoder block as one autograd function: forward and backward written out, and nothing kept but what is needed.

    h ─┬─ norm ─ q,k,v ─ rotary ─ attention ─ o ─ + ─┬─ norm ─ gate,up ─ act·up ─ down ─ + ─▶ h'
       └──────────────────────────────────────────┘ └─────────────────────────────────┘

Kept for backward: h at both forks, q, k, v and what attention keeps of them, gate and up (or nothing of the
feed-forward layer, when memory is short), and the adapters' low-rank states. Norms, activations, masked inputs and
dropout masks are made again. Frozen weights get no gradient; an input that nobody learns from (below the first adapter)
gets none either. The adapters of projections that read one input share its dropout mask and one product (LoraGroup).

The feed-forward layer is computed in slices of its inner columns: two products, adapters, activation and the product
back are done while a slice's values are in the processor's cache, so no value (T, I) is ever whole.

The last block can be asked for some rows only: everything after attention then runs on those.

Cost: the matrix products of the block twice (the plain path: the same), and three reads of its wide values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast.compiled import fused
from weitune.model.fast.dropout import DropoutString
from weitune.model.fast.lora_forward import AdapterGradients, GroupPass, add_masked
from weitune.model.fast.matmul import add_linear, times
from weitune.model.fast.projection import Factors, LoraGroup
from weitune.model.storage.shard import gathered

SLICE_COLUMNS = 64, 1280
"""Columns of a wide value that are worked on at once on a CPU: a multiple of the first, at most the second. With fewer
products are slower, and with more what lies in the processor's cache is gone before it is used."""

_FUSED_NORM = hasattr(torch.ops.aten, "_fused_rms_norm_backward")
"""Whether this torch has RMSNorm as one kernel on a GPU."""

Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], None]]
"""A function, and what writes its gradient, given (slope, input), in place of the input."""


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """RMSNorm (Zhang and Sennrich, arXiv 1910.07467): x / sqrt(mean(x²) + eps) · weight."""

    weight: Tensor
    """(C,)"""
    epsilon: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised ``x`` (T, C), and 1 / root mean square of each row (T, 1) in float32."""
        if x.is_cuda and _FUSED_NORM:
            weight = self.weight.to(x.dtype)
            normed, inverse = torch.ops.aten._fused_rms_norm(x, [x.shape[1]], weight, self.epsilon)
            return normed, inverse
        exact = x.float() if x.dtype is not torch.float64 else x
        inverse = (exact.square().mean(-1, keepdim=True) + self.epsilon).rsqrt_()
        return (exact * inverse).to(x.dtype).mul_(self.weight), inverse

    def backward(self, slope: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        """Return the gradient of ``x`` from that of the normalised ``x``."""
        if x.is_cuda and _FUSED_NORM:
            found: Tensor = torch.ops.aten._fused_rms_norm_backward(
                slope, x, [x.shape[1]], inverse, self.weight.to(x.dtype), [True, False]
            )[0]
            return found
        exact = x.float() if x.dtype is not torch.float64 else x
        weighted = (slope * self.weight).to(exact.dtype)
        mean = (weighted * exact).mean(-1, keepdim=True).mul_(inverse.pow(3))
        return weighted.mul_(inverse).addcmul_(exact, mean, value=-1).to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class BlockParts:
    """The weights of a block and what is special about its family."""

    norm_in: Norm
    norm_post: Norm
    qkv: LoraGroup
    out: LoraGroup
    gate_up: LoraGroup
    down: LoraGroup
    activation: Activation
    attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    """From q (T, H·D), k and v (T, G·D) before rotary, and the pass, to (T, H·D); differentiable by autograd."""
    layer: torch.nn.Module
    """Whose weights these are."""

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        """The groups of projections in order."""
        return self.qkv, self.out, self.gate_up, self.down

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Every trained tensor of the block, in the order of :attr:`groups`."""
        return [parameter for group in self.groups for parameter in group.parameters]


@dataclass(slots=True, eq=False)
class BlockContext:
    """What all blocks share in one forward pass."""

    attention: Any
    """What :attr:`BlockParts.attend` needs to know of the row."""
    dropout: DropoutString | None
    keep_feed_forward: bool = True
    """Keep gate and up for backward: faster, but twice the memory."""
    once: bool = True
    """Going backward uses up what was kept, so that memory falls while it goes; gradcheck goes several times."""


def run_block(parts: BlockParts, hidden: Tensor, run: BlockContext, rows: Tensor | None = None) -> Tensor:
    """Return the block's output of ``hidden`` (T, C): (T, C), or (len(rows), C) for some ``rows`` only."""
    with gathered(parts.layer):
        output: Tensor = _Block.apply(hidden, parts, run, rows, *parts.parameters)  # type: ignore[no-untyped-call]
    return output


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parts: BlockParts, run: BlockContext, rows: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        qkv, out, gate_up, down = passes = [GroupPass.draw(group, run.dropout) for group in parts.groups]
        heads, low_qkv = qkv.forward(parts.norm_in.forward(hidden)[0])
        leaves = query, key, value = tuple(head.requires_grad_() for head in heads)
        with torch.enable_grad():
            attended = parts.attend(query, key, value, run.attention)
        taken, residual = attended.detach(), hidden
        if rows is not None:
            taken, residual = taken[rows], hidden[rows]
        (middle,), low_out = out.forward(taken)
        middle.add_(residual)

        output, low_wide, low_down, inner = _feed_forward(parts, gate_up, down, middle, run)

        ctx.parts, ctx.run, ctx.rows, ctx.passes = parts, run, rows, passes
        ctx.kept = _Kept(leaves, attended, hidden, middle, (low_qkv, low_out, low_wide, low_down), inner)
        return output

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        kept: _Kept = ctx.kept
        if ctx.run.once:
            ctx.kept = None  # autograd would hold it until the whole graph dies
        with gathered(ctx.parts.layer):
            middle_slope, found_wide = _feed_forward_backward(ctx, kept, slopes[0])
            hidden_slope, found_attention = _attention_backward(ctx, kept, middle_slope)
        return hidden_slope, None, None, None, *found_attention, *found_wide


@dataclass(slots=True)
class _Kept:
    """What forward leaves for backward."""

    leaves: tuple[Tensor, ...]
    attended: Tensor
    hidden: Tensor
    middle: Tensor
    lows: tuple[Tensor | None, ...]
    inner: list[tuple[Tensor, Tensor]]
    """gate and up, slice by slice; empty if they are to be computed again"""


def _feed_forward(
    parts: BlockParts, gate_up: GroupPass, down: GroupPass, middle: Tensor, run: BlockContext
) -> tuple[Tensor, Tensor | None, Tensor | None, list[tuple[Tensor, Tensor]]]:
    """Return the block's output, the low-rank states of both groups, and gate and up if they are kept."""
    normed, _ = parts.norm_post.forward(middle)
    factors, factors_down = gate_up.factors(normed), down.factors(normed)
    dropped = gate_up.drop(normed)
    low_wide = dropped @ factors.a.T if factors else None
    entry = _Entry(gate_up, normed, dropped, factors, low_wide)
    low_down = normed.new_zeros(len(normed), len(factors_down.a)) if factors_down else None
    mask, (frozen,) = down.mask(len(normed)), down.group.projections
    bias = frozen.bias(normed.dtype)
    output = middle.clone() if bias is None else middle + bias
    inner = []
    for part in _slices(normed, parts.down.inputs):
        gate, up = entry.gate_and_up(part)
        wide = _gated(gate, up, parts.activation[0])
        add_linear(output, wide, frozen.weight(wide.dtype, inputs=part))
        if factors_down and low_down is not None:
            wide = wide if mask is None else wide.mul_(mask[:, part])
            down.add_frozen_of_dropped([output], wide, inputs=part)
            low_down.addmm_(wide, factors_down.a[:, part].T)
        if run.keep_feed_forward:
            inner.append((gate, up))
    if factors_down and low_down is not None:
        factors_down.add_to([output], low_down)
    return output, low_wide, low_down, inner


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """What the columns of gate and up are made from."""

    gate_up: GroupPass
    normed: Tensor
    dropped: Tensor
    """What dropout left of it."""
    factors: Factors | None
    low: Tensor | None

    def gate_and_up(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return columns ``part`` of gate and up."""
        gate, up = outputs = self.gate_up.frozen(self.normed, self.dropped, part)
        if self.factors is not None and self.low is not None:
            self.factors.of(part).add_to(outputs, self.low)
        return gate, up


def _feed_forward_backward(ctx: Any, kept: _Kept, slope: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the gradient at the block's second fork, and those of the feed-forward layer's adapters."""
    parts: BlockParts = ctx.parts
    _, _, gate_up, down = ctx.passes
    _, _, low_wide, low_down = kept.lows
    normed, inverse = parts.norm_post.forward(kept.middle)
    factors, factors_down = gate_up.factors(slope), down.factors(slope)
    entry = _Entry(gate_up, normed, gate_up.drop(normed), factors, low_wide)
    down_slope = factors_down.gradient_of_low([slope]) if factors_down else None
    low_slope = torch.zeros_like(low_wide) if low_wide is not None else None
    found_down, found_wide = AdapterGradients(down), AdapterGradients(gate_up)
    mask, (frozen,) = down.mask(len(normed)), down.group.projections
    normed_slope, dropped_slope = torch.zeros_like(normed), torch.zeros_like(normed)
    inner = kept.inner[::-1]
    if ctx.run.once:
        kept.inner = []
    for part in _slices(normed, parts.down.inputs):
        gate, up = inner.pop() if inner else entry.gate_and_up(part)
        gate = gate if ctx.run.once else gate.clone()
        active, wide_slope = parts.activation[0](gate), times(slope, frozen.weight(slope.dtype, inputs=part))
        seen, wide_dropped_slope = None if mask is None else mask[:, part], None
        if factors_down and down_slope is not None:
            wide = _dropped(active, up, seen)
            found_down.add_a(down_slope, wide)
            found_down.add_magnitudes(wide, [slope], inputs=part)
            wide_dropped_slope = down_slope @ factors_down.a[:, part]
            down.add_gradient_of_dropped(wide_dropped_slope, [slope], inputs=part)
        _write_slopes(wide_slope, gate, up, active, wide_dropped_slope, seen, parts.activation[1])
        slopes = [gate, wide_slope]
        if factors and low_wide is not None and low_slope is not None:
            low_slope += factors.of(part).gradient_of_low(slopes)
            found_wide.add_b(low_wide, slopes)
            found_wide.add_magnitudes(entry.dropped, slopes, part)
            gate_up.add_gradient_of_dropped(dropped_slope, slopes, part)
        gate_up.group.add_gradient_of_input(normed_slope, slopes, part)
    if low_down is not None:
        found_down.add_b(low_down, [slope])
    if factors and low_slope is not None:
        found_wide.add_a(low_slope, entry.dropped)
        add_masked(normed_slope, dropped_slope.addmm_(low_slope, factors.a), gate_up.mask(len(normed)))
    middle_slope = parts.norm_post.backward(normed_slope, kept.middle, inverse).add_(slope)
    return middle_slope, found_wide.result() + found_down.result()


@fused
def _gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    return activation(gate).mul_(up)


@fused
def _dropped(active: Tensor, up: Tensor, mask: Tensor | None) -> Tensor:
    """Return what dropout leaves of the inner values."""
    wide = active * up
    return wide if mask is None else wide.mul_(mask)


@fused
def _write_slopes(
    wide: Tensor, gate: Tensor, up: Tensor, active: Tensor, dropped: Tensor | None, mask: Tensor | None,
    write: Callable[[Tensor, Tensor], None],
) -> None:  # fmt: skip
    """Write the gradients of gate and up in place of ``gate`` and of ``wide``, the inner values' own without dropout.

    ``dropped`` is their gradient by way of what dropout left of them.
    """
    if dropped is not None:
        add_masked(wide, dropped, mask)
    write(wide * up, gate)
    wide.mul_(active)


def _attention_backward(ctx: Any, kept: _Kept, middle_slope: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradient of the block's input, and those of the adapters before and after attention."""
    parts: BlockParts = ctx.parts
    qkv, out, _, _ = ctx.passes
    attended = kept.attended.detach()
    taken = attended if ctx.rows is None else attended[ctx.rows]
    taken_slope, found_out = out.backward([middle_slope], kept.lows[1], taken)
    residual_slope = middle_slope
    if ctx.rows is not None:
        taken_slope = torch.zeros_like(attended).index_copy_(0, ctx.rows, taken_slope)
        residual_slope = torch.zeros_like(kept.hidden).index_copy_(0, ctx.rows, middle_slope)
    slopes = list(torch.autograd.grad(kept.attended, kept.leaves, taken_slope, retain_graph=not ctx.run.once))
    normed, inverse = parts.norm_in.forward(kept.hidden)
    if not ctx.needs_input_grad[0]:
        return None, qkv.backward_to_adapters(slopes, kept.lows[0], normed) + found_out
    normed_slope, found_qkv = qkv.backward(slopes, kept.lows[0], normed)
    return parts.norm_in.backward(normed_slope, kept.hidden, inverse).add_(residual_slope), found_qkv + found_out


def _slices(x: Tensor, width: int) -> Iterator[slice]:
    """Cut ``width`` columns of what belongs to the rows of ``x`` into slices, as even as can be."""
    unit, most = SLICE_COLUMNS
    step = width
    if x.device.type == "cpu" and x.dtype.itemsize >= 4:  # sums over slices would be rounded too often in 16 bits
        count = -(-width // most)
        step = -(-width // (count * unit)) * unit
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def _silu_slope(slope: Tensor, x: Tensor) -> None:
    torch.ops.aten.silu_backward.grad_input(slope, x, grad_input=x)


def _gelu_slope(approximate: str) -> Callable[[Tensor, Tensor], None]:
    def write(slope: Tensor, x: Tensor) -> None:
        torch.ops.aten.gelu_backward.grad_input(slope, x, approximate=approximate, grad_input=x)

    return write


ACTIVATIONS: dict[str, Activation] = {
    "silu": (F.silu, _silu_slope),
    "swish": (F.silu, _silu_slope),
    "gelu": (F.gelu, _gelu_slope("none")),
    "gelu_pytorch_tanh": (lambda x: F.gelu(x, approximate="tanh"), _gelu_slope("tanh")),
}
"""By the names that transformers' configurations use."""
