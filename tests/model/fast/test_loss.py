"""The fused loss against its readable twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weitune.data.conversation import OTHERS
from weitune.model.fast import loss as module
from weitune.model.fast.loss import (
    Head,
    LogitForm,
    Predictions,
    log_probs,
    reference_log_probs,
    reference_loss,
    supervised_loss,
)

FORMS = [LogitForm(), LogitForm(0.25), LogitForm(cap=1.5), LogitForm(-2.0, 30.0)]


def inputs(n: int, c: int, v: int, dtype: torch.dtype, *, bias: bool = True) -> tuple[Tensor, Head, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 1000 + v)
    hidden = torch.randn(n, c, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(v, c, generator=generator, dtype=torch.float64).to(dtype)
    offset = torch.randn(v, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    targets = torch.randint(v, (n,), generator=generator)
    weights = torch.rand(n, generator=generator).to(torch.float64 if dtype is torch.float64 else torch.float32)
    return hidden, Head(weight, offset), targets, weights


def each(targets: Tensor, weights: Tensor) -> Predictions:
    """Return one prediction for each state."""
    return Predictions(torch.arange(len(targets)), targets, weights)


def several(n: int, v: int) -> Predictions:
    """Return what ``n`` states of ``v`` tokens predict: of six, four one token, one three and the others, one nothing;
    and at the end padding, as it fills a batch up."""
    generator = torch.Generator().manual_seed(n)
    made: list[tuple[int, int, float]] = []
    for state in range(n):
        if state % 6 == 4:
            tokens = torch.randperm(v, generator=generator)[:3].tolist()
            made += [(state, OTHERS, 0.3), *((state, token, 0.1 * at) for at, token in enumerate(tokens, 1))]
        elif state % 6 != 5:
            made.append((state, int(torch.randint(v, (), generator=generator)), 0.7))
    states, targets, weights = (torch.tensor(x) for x in zip(*made, *[(n - 1, 0, 0.0)] * 3, strict=True))
    return Predictions(states, targets, weights, others=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_logits", [1, 5 * 31, 10**6])
@pytest.mark.parametrize("n", [5, 64])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_a_state_may_predict_several_tokens_and_the_others_as_one(
    n: int, dtype: torch.dtype, tolerance: float, chunk_logits: int, form: LogitForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_LOGITS", 2 * 31)
    hidden, head, _, _ = inputs(n, 17, 31, dtype)
    head, predictions = head._replace(form=form), several(n, 31)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = supervised_loss(ours, head, predictions, chunk_logits)
    expected = reference_loss(theirs, head, predictions)
    (loss * 0.25).backward()
    (expected * 0.25).backward()
    torch.testing.assert_close(loss.to(expected.dtype), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(supervised_loss(hidden, head, predictions, chunk_logits), loss.detach())


def test_the_heaviest_token_of_each_state_is_named() -> None:
    states, targets = torch.tensor([0, 0, 0, 1, 3, 4, 4]), torch.tensor([OTHERS, 5, 2, 9, OTHERS, 3, 0])
    predictions = Predictions(states, targets, torch.tensor([0.5, 0.2, 0.3, 1.0, 1.0, 0.6, 0.0]), others=True)
    assert predictions.heaviest(0, 5).squeeze(1).tolist() == [2, 9, 0, 0, 3]
    assert predictions.heaviest(1, 2).squeeze(1).tolist() == [9, 0]


def test_the_others_are_one_token_more() -> None:
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shares = logits.softmax(-1)[0]
    told = Predictions(
        torch.zeros(3, dtype=torch.long), torch.tensor([OTHERS, 1, 4]), torch.tensor([0.5, 0.2, 0.3]), True
    )
    expected = -(0.5 * shares[[0, 2, 3]].sum().log() + 0.2 * shares[1].log() + 0.3 * shares[4].log())
    torch.testing.assert_close(module.loss_of_logits(logits, told), expected, rtol=1e-7, atol=0)


def test_what_a_model_predicts_of_itself_has_no_gradient() -> None:
    hidden, head, _, _ = inputs(3, 17, 31, torch.float64)
    shares, tokens = (hidden @ head.weight.T + head.bias).softmax(-1).topk(6)
    rest = 1 - shares.sum(-1, keepdim=True)
    targets = torch.cat([torch.full_like(tokens[:, :1], OTHERS), tokens], 1)
    states = torch.arange(3)[:, None].expand_as(targets)
    told = Predictions(states.flatten(), targets.flatten(), torch.cat([rest, shares], 1).flatten(), others=True)
    hidden.requires_grad_()
    supervised_loss(hidden, head, told).backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "chunk_logits"), [(1, 1), (7, 3 * 31), (7, 10**6), (64, 5 * 31), (0, 31)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_value_and_gradient_equal_the_reference(n, chunk_logits, dtype, tolerance, bias, form, monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK_LOGITS", 2 * 31)
    hidden, head, targets, weights = inputs(n, 17, 31, dtype, bias=bias)
    head = head._replace(form=form)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = supervised_loss(ours, head, each(targets, weights), chunk_logits)
    expected = reference_loss(theirs, head, each(targets, weights))
    (loss * 0.25).backward()
    (expected * 0.25).backward()
    torch.testing.assert_close(loss.to(expected.dtype), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "chunk_logits"), [(1, 1), (7, 10**6), (64, 5 * 31), (0, 31)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_log_probabilities_and_the_gradient_of_any_loss_of_them(
    n, chunk_logits, dtype, tolerance, form, monkeypatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_LOGITS", 2 * 31)
    hidden, head, targets, weights = inputs(n, 17, 31, dtype)
    head = head._replace(form=form)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found, expected = log_probs(ours, head, targets, chunk_logits), reference_log_probs(theirs, head, targets)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for values in (found, expected):  # a weight of either sign, and one that depends on the others
        torch.sigmoid((values * (weights - 0.5)).sum() / 8).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)


def test_log_probabilities_are_what_the_loss_is_made_of() -> None:
    hidden, head, targets, weights = inputs(64, 17, 31, torch.float32)
    found = log_probs(hidden, head, targets, 5 * 31)
    assert not found.requires_grad
    loss = supervised_loss(hidden, head, each(targets, weights), 5 * 31)
    torch.testing.assert_close(-(found * weights).sum(), loss)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: LogitForm) -> None:
    hidden, head, targets, weights = inputs(5, 6, 11, torch.float64)
    head = head._replace(form=form)
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(lambda h: supervised_loss(h, head, each(targets, weights), 22), hidden)
    assert torch.autograd.gradcheck(lambda h: log_probs(h, head, targets, 22), hidden)


def test_a_cap_holds_every_logit_back() -> None:
    products = torch.tensor([0.0, 1e-3, 1.0, 50.0, -1e4], dtype=torch.float64)
    logits = LogitForm(2.0, 30.0).logits(products)
    torch.testing.assert_close(logits[:2], 2 * products[:2], rtol=1e-6, atol=0)
    assert logits.abs().max() == 30
    torch.testing.assert_close(LogitForm(2.0, 30.0).write_logits(products), logits)


def test_without_gradients_none_is_computed() -> None:
    hidden, head, targets, weights = inputs(5, 6, 11, torch.float32, bias=False)
    loss = supervised_loss(hidden, head, each(targets, weights))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference_loss(hidden, head, each(targets, weights)))
