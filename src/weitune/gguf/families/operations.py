"""Changes of tensors on their way into a GGUF file. Each works on the first dimension of its argument."""

from __future__ import annotations

import torch
from torch import Tensor

from weitune.gguf.families.family import Operation, Part, Pieces, same


def interleaved(heads: int) -> Operation:
    """Return a function that puts the two halves of every head's rows in turn.

    llama.cpp rotates pairs of neighbouring rows in some families where transformers rotates row i with row i + D/2:

        transformers   a0 a1 a2 b0 b1 b2        llama.cpp   a0 b0 a1 b1 a2 b2       (one head, D = 6)
    """
    return lambda tensor: swapped(tensor, heads, 2)


def swapped(tensor: Tensor, outer: int, inner: int) -> Tensor:
    """Read each of ``outer`` groups of rows as a table of ``inner`` rows, and transpose that table."""
    split = tensor.reshape(outer, inner, tensor.shape[0] // outer // inner, *tensor.shape[1:])
    return split.transpose(1, 2).reshape(tensor.shape)


def added(offset: float) -> Operation:
    """Return a function that adds ``offset``."""
    return lambda tensor: tensor + offset


def scaled(factors: float | Tensor) -> Operation:
    """Return a function that multiplies by ``factors``, in float32: one number, or one for every row."""

    def times(tensor: Tensor) -> Tensor:
        if isinstance(factors, Tensor):
            return tensor.float() * factors.to(tensor.device).reshape(-1, *[1] * (tensor.dim() - 1))
        return tensor.float() * factors

    return times


def kernels(name: str, rows: Operation = same) -> Part:
    """Return the part of the kernels of a convolution, (C, 1, K), which are (C, K) in llama.cpp."""
    return Part(name, rows, values=lambda tensor: tensor.squeeze(1), undo=lambda tensor: tensor.unsqueeze(1))


def decays(name: str, rows: Operation = same) -> Part:
    """Return the part of the rates of a recurrence, of which transformers has the logarithms."""
    return Part(name, rows, values=lambda tensor: -torch.exp(tensor), undo=lambda tensor: torch.log(-tensor))


def halves(first: str, second: str) -> Pieces:
    """Return the parts of the experts' fused matrices (E, 2 I, in), or their biases (E, 2 I): first and second half."""
    parts = (
        Part(first, values=lambda tensor: tensor.chunk(2, 1)[0]),
        Part(second, values=lambda tensor: tensor.chunk(2, 1)[1]),
    )
    return Pieces(parts, lambda *tensors: torch.cat(tensors, 1))
