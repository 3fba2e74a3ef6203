"""A decoder block as one autograd function: forward and backward written out, so that nothing is kept but what is needed.

    h ─┬─ norm ─ q,k,v ─ rotary ─ attention ─ o ─ + ─┬─ norm ─ gate,up ─ act·up ─ down ─ + ─▶ h'
       └──────────────────────────────────────────┘ └─────────────────────────────────┘

Kept for backward: h at both forks, q, k, v and what attention keeps of them, gate and up (or nothing of the
feed-forward layer, when memory is short), and the adapters' low-rank states. Norms, activations, masked inputs and
dropout masks are made again. Frozen weights get no gradient; an input that nobody learns from (below the first adapter)
gets none either. The adapters of projections that read one input share its dropout mask and one product (LoraGroup).

Wide intermediate values (T, I) are worked on in slices of rows that stay in the processor's cache.

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

from weitune.model.dropout import DropoutString
from weitune.model.projection import LoraGroup

SLICE_ELEMENTS = 1 << 19
"""Elements of a wide value that are worked on at once on a CPU: 2 MiB in float32."""

Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
"""A function, and its gradient given (slope, input)."""


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """RMSNorm (Zhang and Sennrich, arXiv 1910.07467): x / sqrt(mean(x²) + eps) · weight."""

    weight: Tensor
    """(C,)"""
    epsilon: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised ``x`` (T, C), and 1 / root mean square of each row (T, 1) in float32."""
        exact = x.float() if x.dtype is not torch.float64 else x
        inverse = (exact.square().mean(-1, keepdim=True) + self.epsilon).rsqrt_()
        return (exact * inverse).to(x.dtype).mul_(self.weight), inverse

    def backward(self, slope: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        """Return the gradient of ``x`` from that of the normalised ``x``."""
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

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        """The groups of projections in order."""
        return self.qkv, self.out, self.gate_up, self.down

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Every trained tensor of the block, in the order of :attr:`groups`."""
        return [parameter for group in self.groups for parameter in group.parameters]


@dataclass(slots=True, eq=False)
class Pass:
    """What all blocks share in one forward pass."""

    attention: Any
    """What :attr:`BlockParts.attend` needs to know of the row."""
    dropout: DropoutString | None
    keep_feed_forward: bool = True
    """Keep gate and up for backward: faster, but twice the memory."""
    once: bool = True
    """Going backward uses up what was kept, so that memory falls while it goes; gradcheck goes several times."""


def run_block(parts: BlockParts, hidden: Tensor, run: Pass, rows: Tensor | None = None) -> Tensor:
    """Return the block's output of ``hidden`` (T, C): (T, C), or (len(rows), C) for some ``rows`` only."""
    output: Tensor = _Block.apply(hidden, parts, run, rows, *parts.parameters)
    return output


@dataclass(slots=True)
class _Masked:
    """One group's dropout mask in one pass: by its offset, so that backward can make it again."""

    dropout: DropoutString | None
    offset: int = 0

    @classmethod
    def draw(cls, group: LoraGroup, run: Pass) -> _Masked:
        dropout = run.dropout if group.adapted and group.rate else None
        return cls(dropout, dropout.draw_offset() if dropout else 0)

    @property
    def scale(self) -> float:
        return self.dropout.scale if self.dropout else 1.0

    def mask(self, shape: tuple[int, int]) -> Tensor | None:
        return self.dropout.mask(self.offset, shape) if self.dropout else None

    def drop(self, x: Tensor) -> Tensor:
        mask = self.mask((x.shape[0], x.shape[1]))
        return x if mask is None else x * mask


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parts: BlockParts, run: Pass, rows: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        masks = [_Masked.draw(group, run) for group in parts.groups]
        normed, _ = parts.norm_in.forward(hidden)
        low_qkv = parts.qkv.down(masks[0].drop(normed)) if parts.qkv.adapted else None
        leaves = [x.requires_grad_() for x in parts.qkv.outputs(normed, low_qkv, masks[0].scale)]
        with torch.enable_grad():
            attended = parts.attend(*leaves, run.attention)
        taken, residual = attended.detach(), hidden
        if rows is not None:
            taken, residual = taken[rows], hidden[rows]
        low_out = parts.out.down(masks[1].drop(taken)) if parts.out.adapted else None
        middle = parts.out.outputs(taken, low_out, masks[1].scale)[0].add_(residual)

        normed, _ = parts.norm_post.forward(middle)
        low_wide = parts.gate_up.down(masks[2].drop(normed)) if parts.gate_up.adapted else None
        gate, up = parts.gate_up.outputs(normed, low_wide, masks[2].scale)
        wide = torch.empty_like(gate)
        lows = []
        for part, mask in _slices(wide, masks[3]):
            torch.mul(parts.activation[0](gate[part]), up[part], out=wide[part])
            if parts.down.adapted:
                lows.append(parts.down.down(wide[part] if mask is None else wide[part] * mask))
        low_down = torch.cat(lows) if lows else None
        output = parts.down.outputs(wide, low_down, masks[3].scale)[0].add_(middle)

        ctx.parts, ctx.run, ctx.rows, ctx.masks = parts, run, rows, masks
        ctx.leaves, ctx.attended = leaves, attended
        ctx.lows = (low_qkv, low_out, low_wide, low_down)
        ctx.hidden, ctx.middle = hidden, middle
        ctx.wide = (gate, up) if run.keep_feed_forward else None
        return output

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        middle_slope, found_wide = _feed_forward_backward(ctx, slopes[0])
        hidden_slope, found_attention = _attention_backward(ctx, middle_slope)
        if ctx.run.once:
            for name in ("leaves", "attended", "lows", "hidden", "middle", "wide"):
                setattr(ctx, name, None)  # autograd would keep it until the whole graph dies
        return hidden_slope, None, None, None, *found_attention, *found_wide


def _feed_forward_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the gradient at the block's second fork, and those of the feed-forward layer's adapters."""
    parts: BlockParts = ctx.parts
    _, _, low_wide, low_down = ctx.lows
    normed, inverse = parts.norm_post.forward(ctx.middle)
    gate, up = ctx.wide or parts.gate_up.outputs(normed, low_wide, ctx.masks[2].scale)
    gate = gate if ctx.run.once else gate.clone()
    wide_slope = parts.down.input_gradient([slope])
    found: list[Tensor] = []
    low_slope = parts.down.gradient_of_low([slope], ctx.masks[3].scale) if parts.down.adapted else None
    a_slope: Tensor | None = None
    for part, mask in _slices(wide_slope, ctx.masks[3]):
        active = parts.activation[0](gate[part])
        if low_slope is not None:
            dropped = active * up[part]
            dropped = dropped if mask is None else dropped.mul_(mask)
            a_slope = _sum(a_slope, low_slope[part].T @ dropped)
            parts.down.add_adapter_gradient(wide_slope[part], low_slope[part], mask)
        gate_slope = parts.activation[1](wide_slope[part] * up[part], gate[part])
        torch.mul(wide_slope[part], active, out=wide_slope[part])  # from here on it is the gradient of up
        gate[part] = gate_slope  # … and gate that of gate
    if low_down is not None and a_slope is not None:
        found = parts.down.gradients([slope], low_down, a_slope, ctx.masks[3].scale)
    normed_slope, found_gate_up = _group_backward(parts.gate_up, [gate, wide_slope], low_wide, normed, ctx.masks[2])
    return slope + parts.norm_post.backward(normed_slope, ctx.middle, inverse), found_gate_up + found


def _attention_backward(ctx: Any, middle_slope: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradient of the block's input, and those of the adapters before and after attention."""
    parts: BlockParts = ctx.parts
    low_qkv, low_out, _, _ = ctx.lows
    taken = ctx.attended.detach() if ctx.rows is None else ctx.attended.detach()[ctx.rows]
    taken_slope, found_out = _group_backward(parts.out, [middle_slope], low_out, taken, ctx.masks[1])
    residual_slope = middle_slope
    if ctx.rows is not None:
        taken_slope = torch.zeros_like(ctx.attended).index_copy_(0, ctx.rows, taken_slope)
        residual_slope = torch.zeros_like(ctx.hidden).index_copy_(0, ctx.rows, middle_slope)
    slopes = list(torch.autograd.grad(ctx.attended, ctx.leaves, taken_slope, retain_graph=not ctx.run.once))
    normed, inverse = parts.norm_in.forward(ctx.hidden)
    wanted = ctx.needs_input_grad[0]
    normed_slope, found = _group_backward(parts.qkv, slopes, low_qkv, normed, ctx.masks[0], wanted=wanted)
    if not wanted:
        return None, found + found_out
    return residual_slope + parts.norm_in.backward(normed_slope, ctx.hidden, inverse), found + found_out


def _group_backward(
    group: LoraGroup, slopes: list[Tensor], low: Tensor | None, inputs: Tensor, masked: _Masked, *, wanted: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradient of a group's input (if ``wanted``), and those of its adapters."""
    total = group.input_gradient(slopes) if wanted else inputs
    if low is None:
        return total, []
    low_slope = group.gradient_of_low(slopes, masked.scale)
    found = group.gradients(slopes, low, low_slope.T @ masked.drop(inputs), masked.scale)
    if wanted:
        group.add_adapter_gradient(total, low_slope, masked.mask((inputs.shape[0], inputs.shape[1])))
    return total, found


def _slices(wide: Tensor, masked: _Masked) -> Iterator[tuple[slice, Tensor | None]]:
    """Cut the rows of a wide value (T, I) into slices that stay in cache, each with its part of the mask."""
    rows, width = wide.shape
    step = max(1, SLICE_ELEMENTS // width) if wide.device.type == "cpu" else rows
    mask = masked.mask((rows, width))
    for start in range(0, rows, max(step, 1)):
        part = slice(start, start + step)
        yield part, None if mask is None else mask[part]


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _silu_slope(slope: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(slope, x)


def _gelu_slope(approximate: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda slope, x: torch.ops.aten.gelu_backward(slope, x, approximate=approximate)


ACTIVATIONS: dict[str, Activation] = {
    "silu": (F.silu, _silu_slope),
    "swish": (F.silu, _silu_slope),
    "gelu": (F.gelu, _gelu_slope("none")),
    "gelu_pytorch_tanh": (lambda x: F.gelu(x, approximate="tanh"), _gelu_slope("tanh")),
}
"""By the names that transformers' configurations use."""
