"""What a module computes besides its weights, as a value: modules with the same settings compute the same."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn


def settings(module: nn.Module) -> Hashable:
    """Return the classes of all modules in ``module`` and their plain attributes, without the layer's number.

    SmolLM3, for instance, has an attribute ``use_rope`` that is true in some layers only.
    """
    return tuple(
        (name, type(each), key, value)
        for name, each in module.named_modules()
        for key, value in vars(each).items()
        if isinstance(value, bool | int | float | str) and key != "layer_idx"
    )
