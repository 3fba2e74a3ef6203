"""Speculative decoding (Leviathan et al., arXiv 2211.17192) by the model itself, its weights rounded to 4 bits.

    written   the quick brown │ fox   jumps  over   a
    drafted                     fox   jumps  over   the  lazy    one after another, reading a quarter of the bytes
    verified                    fox ✓ jumps ✓ over ✓ a           all in one pass, as long as that for one token

Reading the weights is what takes time for one row, and the model reads them once for all drafted tokens. What is
written is what the model itself chooses after each token, never the draft: the draft only decides how many of the
choices one pass can make. Draft and model share one cache, so the draft reads what the model wrote there.

Sampling is drafted too: a copy of the row's chooser draws the same noise as the chooser will.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weitune.generate.decode.cache import KeyValueCache
from weitune.generate.decode.choose import Chooser, choose
from weitune.generate.decode.decoder import DecoderPass, StepDecoder
from weitune.generate.decode.products import FourBits, can_be_rounded, of_four_bits
from weitune.model.fast.channel.feed_forward import FeedForward
from weitune.model.fast.self_attention.mixer import Attention

_DRAFTED = 5
"""Tokens of a draft. The model multiplies six rows as fast as one."""
_CANDIDATES = 8
"""Likeliest tokens of a draft whose logits are computed exactly."""
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
    def next(self, token: int, position: int, cache: KeyValueCache, chooser: Chooser) -> int:
        """Return what ``chooser`` chooses by the draft after ``token``, the last one of the row in the cache."""
        decoder = self._decoder
        hidden = self._pass(decoder.embed(torch.tensor([[token]])).to(torch.bfloat16), [position], cache, 0)
        hidden = decoder.last_norm(hidden.to(decoder.blocks.dtype))
        logits = self._head(hidden.to(torch.bfloat16))
        if not chooser.plain:
            return choose([chooser], self._with_bias(logits))[0]
        tokens = logits[0].topk(_CANDIDATES).indices
        exact = self._layer.weight[tokens] @ hidden[0]
        if self._layer.bias is not None:
            exact = exact + self._layer.bias[tokens]
        return int(tokens[exact.argmax()])

    def _with_bias(self, logits: Tensor) -> Tensor:
        bias = self._layer.bias
        return logits if bias is None else logits + bias


class Speculation:
    """Decodes one row, several tokens at a time."""

    def __init__(self, decoder: StepDecoder, draft: Draft) -> None:
        self._decoder, self._draft = decoder, draft
        self._rounds = self._accepted = 0

    @property
    def pays(self) -> bool:
        """Whether drafts have been right often enough."""
        return self._rounds < _PATIENCE or self._accepted >= _LEAST_ACCEPTED * self._rounds

    def next(self, token: int, position: int, cache: KeyValueCache, chooser: Chooser) -> Iterator[int]:
        """Yield the tokens after ``token``, at ``position`` of the first row: one more than were drafted rightly."""
        drafted = self._drafted(token, position, cache, chooser.copy())
        logits = self._decoder.read_on([token, *drafted], position, cache)
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
            token = self._draft.next(token, position + at, cache, chooser)
            drafted.append(token)
        return drafted
