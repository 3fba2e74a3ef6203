"""Make a loss, a gradient or a weight bad in one step of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from weitune.model.supervised import SupervisedModel
from weitune.training import loop as loop_module

Kind = Callable[[SupervisedModel, Tensor, float], Tensor]


class BrokenGradient(torch.autograd.Function):
    """Hands the loss on as it is, and its gradient multiplied by a number that is not finite."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, bad: float) -> Tensor:
        ctx.bad = bad
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.bad, None


def bad_loss(model: SupervisedModel, loss: Tensor, bad: float) -> Tensor:
    return loss * bad


def bad_gradient(model: SupervisedModel, loss: Tensor, bad: float) -> Tensor:
    result: Tensor = BrokenGradient.apply(loss, bad)
    return result


def bad_weight(model: SupervisedModel, loss: Tensor, bad: float) -> Tensor:
    """One number of the adapter is bad, as after a fault of the memory."""
    parameter = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        parameter[0, 0] = bad
    return loss + parameter.sum() * 0.0


def inject(patch: pytest.MonkeyPatch, kind: Kind, step: int, bad: float) -> None:
    """Make what ``kind`` says bad in step ``step`` (from 1), until ``patch`` is undone."""
    now = {"step": 0}
    seed_step, forward = loop_module.seed_step, SupervisedModel.forward

    def note_step(seed: int, k: int, rank: int) -> None:
        now["step"] = k + 1
        seed_step(seed, k, rank)

    def broken(self: SupervisedModel, row: Any) -> Tensor:
        loss = forward(self, row)
        return kind(self, loss, bad) if now["step"] == step else loss

    patch.setattr(loop_module, "seed_step", note_step)
    patch.setattr(SupervisedModel, "forward", broken)
