"""Numbers for a model without weights, in hardly any memory: enough to find out what its parts compute.

    numbers    a b c d e f …          matrix    a b c d
                                                b c d e
                                                c d e f

The rows of a matrix overlap in memory, so N + K numbers make one of N · K that is like no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def without_parameters() -> Iterator[None]:
    """Make modules whose parameters are on the meta device within the block; buffers get their numbers."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


@contextmanager
def stand_in_numbers(model: nn.Module) -> Iterator[None]:
    """Give every parameter of ``model``, all on the meta device, numbers within the block."""
    draw = torch.Generator().manual_seed(0)
    held: list[tuple[dict[str, Any], str, Any]] = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                held.append((module._parameters, name, parameter))
    try:
        for parameters, name, parameter in held:
            numbers = _overlapping(parameter.shape, parameter.dtype, draw)
            parameters[name] = nn.Parameter(numbers, requires_grad=False)
        yield
    finally:
        for parameters, name, parameter in held:
            parameters[name] = parameter


def _overlapping(shape: torch.Size, dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    numbers = 0.1 * torch.randn(sum(shape) + 1, generator=draw)
    return numbers.to(dtype).as_strided(shape, (1,) * len(shape))
