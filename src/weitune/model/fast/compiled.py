"""Functions that torch.compile turns into one kernel, on a GPU for which it can; elsewhere they run as they are.

Elementwise work on a GPU costs its reading and writing, so what is read and written together should be one kernel. Only
functions whose every number stands for itself are decorated, and attention, which has one configuration: sums that
torch.compile arranges as it finds fastest could differ in their last bits from one machine to the next.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])
_VARIANTS = 64
"""How often one function may be compiled: for each number format, with and without gradients, window, bias and mask."""


def fused(function: _Function) -> _Function:
    """Return ``function``, compiled where its first argument, a tensor, lies on a GPU."""

    @wraps(function)
    def run(first: torch.Tensor, *rest: Any) -> Any:
        chosen = _compiled(function) if first.is_cuda and can_compile() else function
        return chosen(first, *rest)

    return run  # type: ignore[return-value]


@cache
def can_compile() -> bool:
    """Return whether torch.compile has what it needs for a GPU here."""
    return importlib.util.find_spec("triton") is not None


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` for sizes that change from step to step."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)
    return compiled
