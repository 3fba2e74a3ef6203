"""Run a module's own forward with stand-ins for its parts, to see what it does between them; no weight is read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

UNSUITABLE = (ValueError, TypeError, AttributeError, RuntimeError, LookupError, AssertionError, ImportError)
"""What a forward raises that cannot run in this way."""


def with_stand_ins(module: nn.Module, forwards: Mapping[str, Callable[..., Any]]) -> nn.Module:
    """Return a copy of ``module`` that shares everything with it but what its parts of these names compute.

    Call the forward of its class: hooks of the module stay out of it.
    """
    parts = OrderedDict(module._modules)
    for name, forward in forwards.items():
        part = _copy(parts[name])
        part.__dict__.update(forward=forward, _forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
        parts[name] = part
    copied = _copy(module)
    copied.__dict__["_modules"] = parts
    return copied


def _copy(module: Any) -> nn.Module:
    copied: nn.Module = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    return copied
