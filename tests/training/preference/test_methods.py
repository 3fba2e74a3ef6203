"""The methods' losses, against what the papers' formulas give for plain numbers."""

from __future__ import annotations

import math

import pytest
import torch

from weitune.recipe.preference import Preference
from weitune.training.preference.methods import Scored, kto_shift, losses, pairs, sft_weight

SUMS, LENGTHS, REFERENCE = (-7.0, -11.0, -30.0, -12.5), (4, 5, 20, 3), (-8.0, -9.5, -31.5, -12.0)
LIKED = (True, False, True, False)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scored(*columns: tuple[float, ...]) -> Scored:
    return Scored(*(torch.tensor(column, dtype=torch.float64) for column in columns))


ANSWERS = scored(SUMS, LENGTHS, REFERENCE)


def by_paper(method: str, pair: int) -> float:
    """Return the loss of a pair with beta 0.3, label smoothing 0.1, and margin 0.7."""
    (l_w, l_l), (n_w, n_l), (f_w, f_l) = (x[2 * pair : 2 * pair + 2] for x in (SUMS, LENGTHS, REFERENCE))
    r_w, r_l = l_w - f_w, l_l - f_l
    match method:
        case "dpo" | "cpo":
            x = 0.3 * (r_w - r_l if method == "dpo" else l_w - l_l)
            return -0.9 * math.log(sigmoid(x)) - 0.1 * math.log(sigmoid(-x))
        case "dpo_norm":
            return -math.log(sigmoid(0.3 * (r_w / n_w - r_l / n_l)))
        case "ipo":
            return (r_w / n_w - r_l / n_l - 1 / 0.6) ** 2
        case "hinge":
            return max(0.0, 1 - 0.3 * (r_w - r_l))
        case "simpo":
            return -math.log(sigmoid(0.3 * (l_w / n_w - l_l / n_l) - 0.7))
        case _:
            odds = [p / (1 - p) for p in (math.exp(l_w / n_w), math.exp(l_l / n_l))]
            return -0.3 * math.log(sigmoid(math.log(odds[0] / odds[1])))


@pytest.mark.parametrize("method", ["dpo", "dpo_norm", "ipo", "hinge", "orpo", "simpo", "cpo"])
def test_losses_of_pairs(method: str) -> None:
    keys = {"label_smoothing": 0.1} if method in ("dpo", "cpo") else {"margin": 0.7} if method == "simpo" else {}
    preference = Preference(method=method, beta=0.3, **keys)
    found = losses(preference, ANSWERS, torch.tensor(LIKED), torch.tensor(0.0))
    assert found.tolist() == pytest.approx([by_paper(method, 0), by_paper(method, 1)], rel=1e-12)


def test_losses_of_judged_answers() -> None:
    preference = Preference(method="kto", beta=0.3, liked_weight=2.0, disliked_weight=0.5)
    found = losses(preference, ANSWERS, torch.tensor(LIKED), torch.tensor(0.4, dtype=torch.float64))
    gains = [0.3 * (a - b - 0.4) for a, b in zip(SUMS, REFERENCE, strict=True)]
    expected = [
        2 * (1 - sigmoid(x)) if liked else 0.5 * (1 - sigmoid(-x)) for x, liked in zip(gains, LIKED, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_shift_is_a_mean_that_is_never_negative_and_has_no_gradient() -> None:
    ratios = torch.tensor([3.0, -1.0, 2.5], requires_grad=True)
    assert float(kto_shift(ratios)) == 1.5
    assert float(kto_shift(-ratios)) == 0
    assert not kto_shift(ratios).requires_grad


def test_pairs_alternate() -> None:
    chosen, rejected = pairs(ANSWERS)
    assert (chosen.lengths.tolist(), rejected.lengths.tolist()) == ([4, 20], [5, 3])


def test_a_certain_answer_has_finite_odds() -> None:
    answers = scored((0.0, -11.0), (4, 5), (0.0, 0.0))
    answers.sums.requires_grad_()
    loss = losses(Preference(method="orpo"), answers, torch.tensor([True, False]), torch.tensor(0.0)).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(answers.sums.grad).all()


def test_the_papers_of_orpo_and_cpo_add_the_cross_entropy_of_chosen_answers() -> None:
    weights = {method: sft_weight(Preference(method=method)) for method in ("orpo", "cpo", "dpo", "simpo", "kto")}
    assert weights == {"orpo": 1, "cpo": 1, "dpo": 0, "simpo": 0, "kto": 0}
    assert sft_weight(Preference(method="dpo", sft_weight=0.2)) == 0.2
