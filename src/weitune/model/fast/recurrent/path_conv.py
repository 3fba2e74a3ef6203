"""A depthwise causal convolution along the paths of a prefix tree, with frozen weights.

    y_i = b + Σ over back of w[taps - 1 - back] · x of the token ``back`` before i in its own conversation

Of most rows these are the rows just before them, so the whole row is convolved by shifted sums, and the rows after
forks and beginnings, a few in a hundred, are computed again from a gathered window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.model.fast.recurrent.chunks import PathWindows


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """The weights of a convolution over time in which every channel has its own."""

    module: nn.Conv1d

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return (taps, channels), the last tap's first: that of the token itself."""
        return self.module.weight.detach().squeeze(1).flip(1).T.to(dtype).contiguous()

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return (channels,)."""
        return None if self.module.bias is None else self.module.bias.detach().to(dtype)

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


class _PathConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Taps, windows: PathWindows) -> Tensor:
        ctx.taps, ctx.windows, ctx.dtype = taps, windows, x.dtype
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        weight, bias = taps.weight(x.dtype), taps.bias(x.dtype)
        output = x * weight[0]
        for back in range(1, len(weight)):
            output[back:].addcmul_(x[:-back], weight[back])
        if len(windows.rows):
            gathered = F.pad(x, (0, 0, 0, 1))[windows.before]
            output[windows.rows] = (gathered * weight).sum(1)
        return output if bias is None else output.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), windows = grads, ctx.windows
        weight = ctx.taps.weight(grad.dtype)
        repaired = grad[windows.rows]
        grad = grad.index_fill(0, windows.rows, 0)
        grad_x = F.pad(grad * weight[0], (0, 0, 0, 1))
        for back in range(1, len(weight)):
            grad_x[: -back - 1].addcmul_(grad[back:], weight[back])
        if len(windows.rows):
            grad_x.index_add_(0, windows.before.flatten(), (repaired[:, None] * weight).flatten(0, 1))
        return grad_x[:-1].to(ctx.dtype), None, None
