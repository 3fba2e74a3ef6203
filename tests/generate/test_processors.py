"""Sampling draws from the right distribution, from a seed of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from weitune.errors import InputError
from weitune.generate.processors import GumbelNoise, RepetitionPenalty, TopP, processors
from weitune.generate.sampling import Sampling

V = 8


def test_the_largest_noisy_logit_is_a_draw_from_the_softmax() -> None:
    logits = torch.linspace(-2, 2, V).log_softmax(0)
    noise, draws = GumbelNoise([0]), 20_000
    no_ids = torch.empty(1, 0, dtype=torch.long)
    drawn = torch.stack([noise(no_ids, logits[None]).argmax() for _ in range(draws)])
    share = torch.bincount(drawn, minlength=V) / draws
    deviation = (logits.exp() * (1 - logits.exp()) / draws).sqrt()
    assert ((share - logits.exp()).abs() < 5 * deviation).all()


def test_a_row_is_drawn_from_its_own_seed() -> None:
    scores, ids = torch.zeros(3, V), torch.zeros(3, 1, dtype=torch.long)
    together = GumbelNoise([7, 8, 7])(ids, scores)
    alone = GumbelNoise([8])(ids[:1], scores[:1])
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


def test_global_random_numbers_are_neither_used_nor_disturbed() -> None:
    before = torch.get_rng_state()
    GumbelNoise([1])(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, V))
    assert torch.equal(before, torch.get_rng_state())


def test_repetition_penalty_equals_that_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(V, (3, 5), generator=generator)
    scores = torch.randn(3, V, generator=generator)
    ours = RepetitionPenalty(1.3, torch.ones(3, 4, dtype=torch.long))(ids, scores)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(1.3)(ids, scores))


def test_repetition_penalty_does_not_take_padding_for_text() -> None:
    pad, scores = 0, torch.ones(1, V)
    ids, mask = torch.tensor([[pad, pad, 3, 5]]), torch.tensor([[0, 0, 1]])  # 5 is generated
    assert RepetitionPenalty(2.0, mask)(ids, scores).tolist() == [[1, 1, 1, 0.5, 1, 0.5, 1, 1]]


def test_top_k_and_top_p_leave_out_the_unlikely() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    mask, ids = torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    for options in ({"top_k": 2}, {"top_p": 0.85}):
        left = processors(Sampling(temperature=1, seed=0, **options), mask)(ids, scores)
        assert left.isfinite().tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 8.0], ids=lambda scale: f"scale {scale}")
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999])
def test_top_p_equals_that_of_transformers(scale: float, top_p: float) -> None:
    """Of flat distributions nearly all tokens are left, of steep ones a single one."""
    scores = torch.randn(3, 6000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale
    scores[:, 0] += 1e-9  # one likeliest token where all are alike
    scores[1, 5:4000] = -torch.inf
    ours, theirs = TopP(top_p)(scores, scores), TopPLogitsWarper(top_p)(scores, scores)
    if scale:
        assert torch.equal(ours, theirs)
    assert torch.equal(ours.isfinite().sum(1), theirs.isfinite().sum(1))


def test_greedy_touches_nothing() -> None:
    assert processors(Sampling(top_k=3, top_p=0.5, seed=1), torch.ones(1, 1)) == []


def test_every_value_out_of_range_is_named() -> None:
    with pytest.raises(InputError) as error:
        Sampling(max_new_tokens=0, temperature=-1, top_p=0, top_k=-1, repetition_penalty=float("inf"), seed=-1)
    for name in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"):
        assert f"{name} must be" in error.value.message
    with pytest.raises(InputError, match=r"above 0 and at most 1; found 1\.5"):
        Sampling(top_p=1.5)
    with pytest.raises(InputError, match="temperature"):
        Sampling(temperature=float("nan"))
