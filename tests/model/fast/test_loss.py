"""The fused loss against its readable twin."""

from __future__ import annotations

import pytest
import torch

from weitune.model.fast.loss import reference_loss, supervised_loss


def inputs(n: int, c: int, v: int, dtype: torch.dtype, *, bias: bool) -> tuple:
    generator = torch.Generator().manual_seed(n * 1000 + v)
    hidden = torch.randn(n, c, generator=generator, dtype=torch.float64).to(dtype)
    head = torch.randn(v, c, generator=generator, dtype=torch.float64).to(dtype)
    offset = torch.randn(v, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    targets = torch.randint(v, (n,), generator=generator)
    weights = torch.rand(n, generator=generator).to(torch.float64 if dtype is torch.float64 else torch.float32)
    return hidden, head, offset, targets, weights


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "chunk_logits"), [(1, 1), (7, 3 * 31), (7, 10**6), (64, 5 * 31), (0, 31)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_value_and_gradient_equal_the_reference(n, chunk_logits, dtype, tolerance, bias) -> None:
    hidden, head, offset, targets, weights = inputs(n, 17, 31, dtype, bias=bias)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = supervised_loss(ours, head, offset, targets, weights, chunk_logits)
    expected = reference_loss(theirs, head, offset, targets, weights)
    (loss * 0.25).backward()
    (expected * 0.25).backward()
    torch.testing.assert_close(loss.to(expected.dtype), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)


def test_gradcheck() -> None:
    hidden, head, offset, targets, weights = inputs(5, 6, 11, torch.float64, bias=True)
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(lambda h: supervised_loss(h, head, offset, targets, weights, 22), hidden)


def test_without_gradients_none_is_computed() -> None:
    hidden, head, offset, targets, weights = inputs(5, 6, 11, torch.float32, bias=False)
    loss = supervised_loss(hidden, head, offset, targets, weights)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference_loss(hidden, head, offset, targets, weights))
