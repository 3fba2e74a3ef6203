"""Fuse functions into one kernel on a GPU with torch.compile; elsewhere they run eagerly.

Elementwise work on a GPU costs as much as its reads and writes, so steps on the same values should be one kernel. Only
elementwise functions are decorated, and attention, which has one configuration: torch.compile chooses the fastest order
of other sums, so that their last bits could differ between machines.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])
_VARIANTS = 64
"""How often a function may be compiled: for each dtype, with and without gradients, window, bias and mask."""


def fused(function: _Function) -> _Function:
    """Return ``function``, compiled if its first argument, a tensor, is on a GPU."""

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
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)  # sizes change between steps
    return compiled
