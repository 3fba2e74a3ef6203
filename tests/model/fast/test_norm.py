"""Norms: forward and backward against their twins and against the modules of families."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.families import family_model
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.norm import LayerNorm, Norm, RMSNorm, read_norm

C = 12


def vector(seed: int) -> torch.Tensor:
    return torch.randn(C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


NORMS: dict[str, Norm] = {
    "rms": RMSNorm(vector(1), 1e-3),
    "exact rms": RMSNorm(vector(1), 1e-3, exact=True),
    "layer norm": LayerNorm(vector(1), vector(2), 1e-3),
    "layer norm without bias": LayerNorm(vector(1), None, 1e-3),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_forward_and_backward_equal_the_twins(norm: Norm) -> None:
    x = torch.randn(5, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    normed, statistics = norm.forward(x.detach())
    expected = norm.reference(x)
    torch.testing.assert_close(normed, expected)
    grad = torch.randn(5, C, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(norm.backward(grad, x.detach(), statistics), expected_grad)
    assert torch.autograd.gradcheck(norm.reference, (x,))


@pytest.mark.parametrize(
    ("family", "kind", "exact"),
    [
        ("llama", RMSNorm, False),
        ("gemma2", RMSNorm, True),
        ("olmo2", RMSNorm, True),
        ("cohere2", LayerNorm, False),
        ("starcoder2", LayerNorm, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_families(family: str, kind: type, exact: bool, dtype: torch.dtype) -> None:
    module = decoder_of(family_model(family)).norm.to(dtype)
    norm = read_norm(module)
    assert type(norm) is kind
    if kind is RMSNorm and dtype is torch.bfloat16:
        assert norm.exact is exact
    x = (3 * torch.randn(7, 64, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)
    tolerance = 1e-6 if dtype is torch.float32 else 0.01
    torch.testing.assert_close(norm.forward(x)[0], module(x), rtol=tolerance, atol=tolerance)
    if kind is RMSNorm:
        assert torch.equal(norm.forward(x)[0], module(x))


@pytest.mark.parametrize("module", [nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Identity(), None])
def test_what_is_no_norm_is_not_taken_for_one(module: nn.Module | None) -> None:
    assert read_norm(module) is None
