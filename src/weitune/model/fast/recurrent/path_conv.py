"""A depthwise causal convolution along the paths of a prefix tree, with frozen weights.

    y_i = b + Σ over back of w[taps - 1 - back] · x of the token ``back`` before i in its own conversation

Of most rows these are the rows just before them, so the whole row is convolved by shifted sums, and the rows after
forks and beginnings, a few in a hundred, are computed again from a gathered window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.model.fast.recurrent.chunks import PathWindows

COLUMNS = 512
"""Channels that are convolved at once on a CPU"""


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """The weights of a convolution over time in which every channel has its own."""

    module: nn.Conv1d
    part: slice = field(default_factory=lambda: slice(None))
    """of the module's channels"""

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return (taps, channels), the last tap's first: that of the token itself."""
        return self.module.weight.detach()[self.part].squeeze(1).flip(1).T.to(dtype).contiguous()

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return (channels,)."""
        return None if self.module.bias is None else self.module.bias.detach()[self.part].to(dtype)

    def of(self, channels: slice) -> Taps:
        """Return those of some ``channels``."""
        return Taps(self.module, channels)

    @property
    def count(self) -> int:
        return self.module.kernel_size[0]

    @property
    def channels(self) -> int:
        return self.module.out_channels


def read_taps(module: Any) -> Taps | None:
    """Return the weights of ``module`` if it is a causal convolution with one filter a channel."""
    if not isinstance(module, nn.Conv1d) or len({module.groups, module.in_channels, module.out_channels}) > 1:
        return None
    return Taps(module) if (module.stride, module.dilation) == ((1,), (1,)) else None


def path_conv(x: Tensor, taps: Taps, windows: PathWindows) -> Tensor:
    """Return the convolution of ``x`` (T, channels), which is computed and returned in float32 at least."""
    output: Tensor = _PathConv.apply(x, taps, windows)  # type: ignore[no-untyped-call]
    return output


def convolved_heads(
    parts: Sequence[Tensor], taps: Taps, heads: slice, count: int, windows: PathWindows
) -> Iterator[Tensor]:
    """Yield SiLU of the convolution of each of ``parts`` (T, g, ...): some ``heads`` of ``count``.

    The channels are those of all heads of the first part, then those of the second, and so on.
    """
    first = 0
    for x in parts:
        size = x.shape[2]
        channels = slice(first + heads.start * size, first + heads.stop * size)
        yield F.silu(path_conv(x.flatten(1), taps.of(channels), windows)).view(x.shape)
        first += count * size


class _PathConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Taps, windows: PathWindows) -> Tensor:
        ctx.taps, ctx.windows, ctx.dtype = taps, windows, x.dtype
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        weight, bias = taps.weight(x.dtype), taps.bias(x.dtype)
        output = torch.empty_like(x)
        for part, inputs, factors in _columns(output, x, weight):
            torch.mul(inputs, factors[0], out=part)
            for back in range(1, len(factors)):
                part[back:].addcmul_(inputs[:-back], factors[back])
        rows, known = windows.known(len(x))
        output[windows.rows] = (x[rows] * known * weight).sum(1)
        return output if bias is None else output.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), windows = grads, ctx.windows
        weight = ctx.taps.weight(grad.dtype)
        grad_x = torch.empty_like(grad)
        for part, outputs, factors in _columns(grad_x, grad, weight):
            plain = outputs.index_fill(0, windows.rows, 0)
            torch.mul(plain, factors[0], out=part)
            for back in range(1, len(factors)):
                part[:-back].addcmul_(plain[back:], factors[back])
        rows, known = windows.known(len(grad))
        grad_x.index_add_(0, rows.flatten(), (grad[windows.rows][:, None] * known * weight).flatten(0, 1))
        return grad_x.to(ctx.dtype), None, None


def _columns(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same columns of all ``matrices``: on a CPU so few that a row of a batch stays in its cache."""
    return zip(*(each.split(COLUMNS if each.is_cpu else each.shape[1], dim=1) for each in matrices), strict=True)
