"""The logits processors that carry out a :class:`.Sampling`.

Greedy decoding takes the largest logit. Sampling adds independent Gumbel noise to the logits and also takes the
largest, which draws from the softmax distribution exactly (the Gumbel-max trick, Gumbel 1954; Maddison et al., 2014,
arXiv 1411.0030). The noise comes from one generator per conversation, so an answer depends on its own seed alone: not
on the other rows of a batch, nor on any other random number drawn in the process. It is drawn on the CPU, hence equal
on every device, at a cost of V exponential variates a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from weitune.generate.constrain.mask import GrammarMask
from weitune.generate.sampling import Sampling

_LIKELIEST = (256, 4096)
"""Tokens among which those of top-p are looked for, before all are sorted."""


class RepetitionPenalty(LogitsProcessor):  # type: ignore[misc]
    """Divide the positive logits of tokens seen so far by ``penalty`` and multiply the negative ones.

    Equals transformers' processor for one row; in a batch it does not take left padding for tokens seen.
    """

    def __init__(self, penalty: float, attention_mask: Tensor) -> None:
        """``attention_mask`` (B, T) is 0 on the padding of the prompts."""
        self.penalty = penalty
        self.padding = attention_mask == 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Penalise ``scores`` (B, V) of the tokens in ``input_ids`` (B, T and the tokens generated since)."""
        seen = input_ids.clone()
        prompt = seen[:, : self.padding.shape[1]]
        prompt[self.padding] = prompt[:, -1:].expand_as(prompt)[self.padding]  # a token that the row does have
        score = scores.gather(1, seen)
        return scores.scatter(1, seen, torch.where(score < 0, score * self.penalty, score / self.penalty))


class TopP(LogitsProcessor):  # type: ignore[misc]
    """Leave the likeliest tokens that together have the probability ``top_p``; the others get minus infinity.

    Equals transformers' processor, which sorts the whole vocabulary, to the rounding of the sum. Usually a few tokens
    have all of ``top_p``, so these are looked for among the likeliest ones first.
    """

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return ``scores`` (B, V)."""
        whole = scores.logsumexp(-1, keepdim=True)
        for count in (*(count for count in _LIKELIEST if count < scores.shape[-1]), scores.shape[-1]):
            likeliest, tokens = scores.topk(count)
            shares = (likeliest - whole).exp()
            reached = shares.cumsum(-1)
            if (reached[:, -1] >= self.top_p).all():
                break
        kept = likeliest.masked_fill(reached - shares >= self.top_p, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, kept)


class GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Add Gumbel noise to the logits, so that the largest is a draw from their softmax. Must come last."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def copy(self) -> GumbelNoise:
        """Return a processor that will draw the same noise."""
        other = GumbelNoise(())
        other.generators = [generator.clone_state() for generator in self.generators]
        return other

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return ``scores`` (B, V) plus fresh noise; minus infinity stays."""
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        # The negative logarithm of an exponential variate has the Gumbel distribution.
        return scores - noise.log().to(scores.device)


def copied(chain: LogitsProcessorList) -> LogitsProcessorList:
    """Return a chain that will do what ``chain`` would, and leave its generators and matchers as they are."""
    return LogitsProcessorList([each.copy() if isinstance(each, GumbelNoise | GrammarMask) else each for each in chain])


def processors(
    sampling: Sampling,
    attention_mask: Tensor,
    seeds: Sequence[int | None] | None = None,
    mask: GrammarMask | None = None,
) -> LogitsProcessorList:
    """Return the processors, in order, after which the largest logit is the next token.

    ``attention_mask`` (B, T) is 0 on the padding of the prompts. ``seeds`` has one for every row in place of the
    sampling's, which is used for every row, so that a conversation's answer is the same alone and in any batch. A row
    without a seed draws its own. ``mask`` leaves out the tokens with which a row would leave its grammar.
    """
    chain = LogitsProcessorList([] if mask is None else [mask])
    if sampling.repetition_penalty != 1:
        chain.append(RepetitionPenalty(sampling.repetition_penalty, attention_mask))
    if sampling.greedy:
        return chain
    if sampling.temperature != 1:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopP(sampling.top_p))
    seeds = [sampling.seed] * attention_mask.shape[0] if seeds is None else seeds
    chain.append(GumbelNoise([torch.Generator().seed() if seed is None else seed for seed in seeds]))
    return chain
