"""The mixture of experts against the families' own modules, its readable twin and numeric gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import family_model
from weitune.model.fast.experts import routed
from weitune.model.fast.experts.mixture import Mixture
from weitune.model.fast.experts.read import read_mixture
from weitune.model.fast.parts import BlockContext
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

FAMILIES = [
    "qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "gpt_oss", "ernie4_5_moe", "hunyuan_v1_moe", "deepseek_v3",
    "glm4_moe", "llama4_text", "granitemoe", "minimax_m2", "dots1",
]  # fmt: skip
"""Softmax before and after the choice, sigmoids with corrections and groups, weights on inputs, gated shared experts"""


def mixture_of(model: Any) -> tuple[Any, Mixture]:
    """Return the module of the last mixture of a model, and what is read from it."""
    owners = [module for module in model.modules() if hasattr(module, "experts") and hasattr(module, "forward")]
    mixture = read_mixture(owners[-1])
    assert mixture is not None
    return owners[-1], mixture


def model_of(family: str, *, adapted: bool, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    """Return a model, perhaps with adapters of experts and of all else, which do something: B is not zero."""
    model = family_model(family)
    if not adapted:
        return model.to(dtype)
    settings = Lora(**{"r": 4, "alpha": 8, "dropout": 0.0, "experts": True, **lora})
    wrapped = attach_adapter(model, settings, seed=1, base="tiny").to(dtype)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in wrapped.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=dtype)
    return model


def rows(count: int = 23, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x, weights = (torch.randn(count, 64, generator=draw, dtype=dtype) for _ in range(2))
    return x.requires_grad_(), weights


def results_of_module(module: Any, mixture: Mixture, x: Tensor, weights: Tensor) -> list[Tensor]:
    output = module(x[None])
    output = (output[0] if isinstance(output, tuple) else output).view(x.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), [x, *mixture.parameters])]


def results_of_pass(
    mixture: Mixture, x: Tensor, weights: Tensor, *, keep: bool = True, retain: bool = False
) -> list[Tensor]:
    mixer_pass = mixture.begin(BlockContext(None, None, keep))
    base = torch.ones_like(x)
    with torch.no_grad():
        output, saved = mixer_pass.forward(x.detach(), base, None)
        results = [mixer_pass.backward(weights, x.detach(), saved, retain=retain, needs_input=True) for _ in range(1 + retain)]
    assert base.eq(1).all()
    for grad_x, grads in results:
        assert grad_x is not None
        assert len(grads) == len(mixture.parameters)
    grad_x, grads = results[-1]
    return [output - 1, grad_x, *grads]


def assert_close(ours: list[Tensor], theirs: list[Tensor], bound: float) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert other.abs().max() > 0
        assert float((one - other).norm() / other.norm()) < bound


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
@pytest.mark.parametrize("adapted", [False, True], ids=["frozen", "adapted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_those_of_the_family_and_of_the_twin(family: str, adapted: bool) -> None:
    module, mixture = mixture_of(model_of(family, adapted=adapted))
    assert bool(mixture.routed.parameters) == adapted
    x, weights = rows()
    theirs = results_of_module(module, mixture, x, weights)
    for keep, retain in ((True, False), (False, False), (True, True)):
        assert_close(results_of_pass(mixture, x, weights, keep=keep, retain=retain), theirs, 1e-5)
    output = mixture.reference(x, BlockContext(None, None))
    twin = [output.detach(), *torch.autograd.grad((output * weights).sum(), [x, *mixture.parameters])]
    assert_close(twin, theirs, 1e-5)
