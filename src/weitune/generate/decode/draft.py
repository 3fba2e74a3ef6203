"""Speculative decoding (Leviathan et al., arXiv 2211.17192) by the model itself, its weights rounded to 4 bits.

    written   the quick brown │ fox   jumps  over   a
    drafted                     fox   jumps  over   the  lazy    one after another, reading a quarter of the bytes
    verified                    fox ✓ jumps ✓ over ✓ a           all in one pass, as long as that for one token

Reading the weights is what takes time for one row, and the model reads them once for all drafted tokens. What is
written is what the model itself chooses after each token, never the draft: the draft only decides how many of the
choices one pass can make. Draft and model share one cache, so the draft reads what the model wrote there.

Where the last tokens repeat earlier ones, what followed these is the draft, at no cost.

Sampling is drafted too: a copy of the row's chooser draws the same noise as the chooser will.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from weitune.generate.decode.cache import KeyValueCache
from weitune.generate.decode.choose import Chooser, choose
from weitune.generate.decode.decoder import DecoderPass, StepDecoder
from weitune.generate.decode.products import FourBits, can_be_rounded, of_four_bits
from weitune.model.fast.channel.feed_forward import FeedForward
from weitune.model.fast.self_attention.mixer import Attention

_DRAFTED = 7
"""Tokens of a draft. The model multiplies eight rows almost as fast as one."""
_CANDIDATES = 8
"""Likeliest tokens of a draft whose logits are computed exactly."""
_MARGIN = 0.15
"""Between the logits of the two likeliest tokens: below it a draft ends, because what follows is often in vain."""
_RUN = 4
"""Tokens that have to repeat for what followed them to be taken for a draft."""
_LEAST_ACCEPTED = 1.5
"""Tokens of a draft that have to be right on average; below, no more is drafted for a row."""
_PATIENCE = 8
"""Drafts of a row before that is judged."""


class Draft:
    """The model of ``decoder`` with its matrices in 4 bits, for one token of one row at a time."""

    def __init__(self, decoder: StepDecoder) -> None:
        self._decoder = decoder
        self._pass = DecoderPass(decoder.blocks, of_four_bits, decoder.turns, exact=False)
        self._layer = decoder.head.projections[0].layer
        self._head = FourBits.of([self._layer.weight])

    @classmethod
    def of(cls, decoder: StepDecoder) -> Draft | None:
        """Return the draft of a decoder's model, or None if its weights are not plain or a copy has no room."""
        mixers = [branch.mixer for parts in decoder.blocks.parts for branch in parts.branches]
        if not (decoder.fixed and all(isinstance(mixer, Attention | FeedForward) for mixer in mixers)):
            return None
        if not can_be_rounded(decoder.groups, decoder.blocks.dtype):
            return None
        with torch.inference_mode():
            return cls(decoder)

    @torch.inference_mode()
    def next(self, token: int, position: int, cache: KeyValueCache, chooser: Chooser) -> tuple[int, bool]:
        """Return what ``chooser`` chooses by the draft after ``token``, the last one of the row in the cache.

        And whether the model will probably choose it too: by no small margin.
        """
        decoder = self._decoder
        hidden = self._pass(decoder.embed(torch.tensor([[token]])).to(torch.bfloat16), [position], cache, 0)
        hidden = decoder.last_norm(hidden.to(decoder.blocks.dtype))
        logits = self._head(hidden.to(torch.bfloat16))
        if not chooser.plain:
            return choose([chooser], self._with_bias(logits))[0], True
        tokens = logits[0].topk(_CANDIDATES).indices
        exact = self._layer.weight[tokens] @ hidden[0]
        if self._layer.bias is not None:
            exact = exact + self._layer.bias[tokens]
        (first, second), at = (x.tolist() for x in exact.float().topk(2))
        return int(tokens[at[0]]), first - second > _MARGIN

    def _with_bias(self, logits: Tensor) -> Tensor:
        bias = self._layer.bias
        return logits if bias is None else logits + bias


class Speculation:
    """Decodes one row, several tokens at a time."""

    def __init__(self, decoder: StepDecoder, draft: Draft, prompt: Sequence[int]) -> None:
        self._decoder, self._draft = decoder, draft
        self._repeats = Repeats(prompt)
        self._rounds = self._accepted = 0

    @property
    def pays(self) -> bool:
        """Whether drafts have been right often enough."""
        return self._rounds < _PATIENCE or self._accepted >= _LEAST_ACCEPTED * self._rounds

    def next(self, said: Sequence[int], cache: KeyValueCache, chooser: Chooser) -> Iterator[int]:
        """Yield what the first row says after ``said``, the last token of which has not been read.

        That is one token more than were drafted rightly.
        """
        token, position = said[-1], self._repeats.add(said) - 1
        drafted = self._repeats.continued(_DRAFTED) or self._drafted(token, position, cache, chooser.copy())
        filling = [0] * (_DRAFTED - len(drafted))  # the same number of rows always
        logits = self._decoder.read_on([token, *drafted, *filling], position, cache)[: len(drafted) + 1]
        self._rounds += 1
        for at, row in enumerate(logits):
            (chosen,) = choose([chooser], row[None])
            yield chosen
            if at == len(drafted) or chosen != drafted[at]:
                return
            self._accepted += 1

    def _drafted(self, token: int, position: int, cache: KeyValueCache, chooser: Chooser) -> list[int]:
        drafted: list[int] = []
        for at in range(_DRAFTED):
            token, sure = self._draft.next(token, position + at, cache, chooser)
            drafted.append(token)
            if not sure:
                break
        return drafted


class Repeats:
    """Finds what followed the last few tokens where they stood before (Saxena's prompt lookup, 2023)."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Behind which runs of tokens something stands, and where"""
        self._prompt = len(prompt)
        self._extend(prompt)

    def add(self, said: Sequence[int]) -> int:
        """Take in the answer ``said`` so far; return the number of tokens with the prompt."""
        self._extend(said[len(self._tokens) - self._prompt :])
        return len(self._tokens)

    def continued(self, count: int) -> list[int]:
        """Return at most ``count`` tokens that followed the last ones before; empty if they are new."""
        at = self._after.get(tuple(self._tokens[-_RUN:]), 0)
        return self._tokens[at : at + count] if at else []

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if len(self._tokens) >= _RUN:
                self._after[tuple(self._tokens[-_RUN:])] = len(self._tokens)
            self._tokens.append(token)
