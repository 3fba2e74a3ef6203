"""The losses of preference tuning: what each method makes of the log-probabilities of answers.

    L   log-probability of an answer, summed over its n learned tokens
    r   = L − L_ref, what it has gained since before the first step
    β   how strongly the loss reacts to a difference

The methods take tensors of any one shape and return one loss for each element; nothing is divided here. The cross
entropy of the liked answers, which belongs to orpo and cpo too, is added where the loss of a step is put together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.recipe.preference import Method, Preference

_SURE = -torch.finfo(torch.float32).eps
"""The highest mean log-probability whose odds are computed: those of 0 would be infinite."""


class Scored(NamedTuple):
    """Answers with their log-probabilities, in nats: of several groups, the chosen ones or the rejected ones or all."""

    sums: Tensor
    """Log-probability under the model that is trained."""
    lengths: Tensor
    """Learned tokens."""
    reference: Tensor
    """Log-probability before the first step."""

    @property
    def ratios(self) -> Tensor:
        """r, the log-probability gained since before the first step."""
        return self.sums - self.reference

    @property
    def mean_ratios(self) -> Tensor:
        """r/n, the same for each token."""
        return self.ratios / self.lengths

    @property
    def means(self) -> Tensor:
        """L/n, the log-probability of a token."""
        return self.sums / self.lengths


def losses(preference: Preference, answers: Scored, liked: Tensor, shift: Tensor) -> Tensor:
    """Return the loss of every group of a batch by the method of ``preference``.

    ``answers`` and ``liked`` are (S,). The result is (S/2,) for pairs, (S,) for judged answers; kto weighs them.
    """
    beta = preference.beta
    if preference.method == "kto":
        weights = torch.where(liked, preference.liked_weight, preference.disliked_weight)
        return weights * kto(answers, liked, shift, beta)
    return _OF_PAIRS[preference.method](preference, *pairs(answers))


def sft_weight(preference: Preference) -> float:
    """Return how much the cross entropy of the liked answers counts beside the losses of the groups."""
    return 1.0 if preference.method == "orpo" else preference.sft_weight


def pairs(answers: Scored) -> tuple[Scored, Scored]:
    """Return the chosen and the rejected ones of ``answers``, (S,), which alternate: (S/2,) each."""
    return Scored(*(x[0::2] for x in answers)), Scored(*(x[1::2] for x in answers))


def dpo(chosen: Scored, rejected: Scored, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation, −(1 − ε) log σ(β (r_w − r_l)) − ε log σ(−β (r_w − r_l)): arXiv 2305.18290."""
    return _preferred(beta * (chosen.ratios - rejected.ratios), label_smoothing)


def dpo_norm(chosen: Scored, rejected: Scored, beta: float) -> Tensor:
    """DPO with means over the tokens of an answer, −log σ(β (r_w/n_w − r_l/n_l)): arXiv 2411.15124."""
    return _preferred(beta * (chosen.mean_ratios - rejected.mean_ratios))


def ipo(chosen: Scored, rejected: Scored, beta: float) -> Tensor:
    """Identity preference optimisation, (r_w/n_w − r_l/n_l − 1/(2β))²: arXiv 2310.12036."""
    return (chosen.mean_ratios - rejected.mean_ratios - 1 / (2 * beta)).square()


def hinge(chosen: Scored, rejected: Scored, beta: float) -> Tensor:
    """The hinge loss of SLiC-HF and RSO, max(0, 1 − β (r_w − r_l)): arXiv 2305.10425."""
    return torch.relu(1 - beta * (chosen.ratios - rejected.ratios))


def kto(answers: Scored, liked: Tensor, shift: Tensor, beta: float) -> Tensor:
    """Kahneman-Tversky optimisation: 1 − σ(β (r − z)) for ``liked`` answers, 1 − σ(β (z − r)) for others.

    ``shift`` is z, of :func:`kto_shift`. arXiv 2402.01306.
    """
    gained = beta * (answers.ratios - shift)
    return torch.sigmoid(torch.where(liked, -gained, gained))


def kto_shift(mismatched: Tensor) -> Tensor:
    """Return z, an estimate of how far the model has moved: the mean of r, but at least 0.

    ``mismatched`` are the r of answers to prompts of other groups, over the whole step; z has no gradient.
    """
    return mismatched.detach().mean().clamp(min=0)


def orpo(chosen: Scored, rejected: Scored, beta: float) -> Tensor:
    """Odds ratio, −β log σ(o_w − o_l) with o = L/n − log(1 − exp(L/n)): arXiv 2403.07691."""
    return beta * _preferred(_log_odds(chosen.means) - _log_odds(rejected.means))


def simpo(chosen: Scored, rejected: Scored, beta: float, margin: float) -> Tensor:
    """Simple preference optimisation, −log σ(β (L_w/n_w − L_l/n_l) − γ), γ the ``margin``: arXiv 2405.14734."""
    return _preferred(beta * (chosen.means - rejected.means) - margin)


def cpo(chosen: Scored, rejected: Scored, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Contrastive preference optimisation, −log σ(β (L_w − L_l)), smoothed as :func:`dpo` is: arXiv 2401.08417."""
    return _preferred(beta * (chosen.sums - rejected.sums), label_smoothing)


def _preferred(advantage: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy of "the chosen answer is better", whose logit is ``advantage``.

    With a probability of ``label_smoothing`` the label is wrong.
    """
    loss = -F.logsigmoid(advantage)
    if not label_smoothing:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-advantage)


def _log_odds(log_probs: Tensor) -> Tensor:
    """Return log(p / (1 − p)) for p = exp(``log_probs``)."""
    log_probs = log_probs.clamp(max=_SURE)
    return log_probs - torch.log(-torch.expm1(log_probs))


_OF_PAIRS: Mapping[Method, Callable[[Preference, Scored, Scored], Tensor]] = {
    "dpo": lambda p, chosen, rejected: dpo(chosen, rejected, p.beta, p.label_smoothing),
    "dpo_norm": lambda p, chosen, rejected: dpo_norm(chosen, rejected, p.beta),
    "ipo": lambda p, chosen, rejected: ipo(chosen, rejected, p.beta),
    "hinge": lambda p, chosen, rejected: hinge(chosen, rejected, p.beta),
    "orpo": lambda p, chosen, rejected: orpo(chosen, rejected, p.beta),
    "simpo": lambda p, chosen, rejected: simpo(chosen, rejected, p.beta, p.margin),
    "cpo": lambda p, chosen, rejected: cpo(chosen, rejected, p.beta, p.label_smoothing),
}
