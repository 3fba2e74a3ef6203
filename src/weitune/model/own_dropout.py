"""What a model itself draws at random in training: dropout, as Seed-OSS's configuration asks for, and experts.

It would be drawn for every row anew, so the size of a pass would change what is learned; and
:mod:`weitune.model.fast.block` does not compute it. The adapter has dropout of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def turn_off_own_dropout(model: PreTrainedModel) -> None:
    """Set every rate of dropout in the modules of ``model``, which has no adapter yet, to 0."""
    for module in model.modules():
        rates = [name for name, value in vars(module).items() if isinstance(value, float) and _is_rate(name)]
        for name in rates + ["p"] * isinstance(module, nn.Dropout):
            setattr(module, name, 0.0)


def turn_off_own_noise(model: nn.Module) -> None:
    """Let the routers of ``model`` choose experts as in evaluation; to be called after ``model.train()``.

    Those of Phi-3.5-MoE draw among experts that are nearly tied, and name what they do a jitter.
    """
    for module in model.modules():
        if any("jitter" in name for name in vars(module)):
            module.training = False


def _is_rate(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")
