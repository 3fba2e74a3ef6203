"""Choose the next tokens of rows from their logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from weitune.generate.constrain.mask import GrammarMask
from weitune.generate.processors import copied, processors
from weitune.generate.sampling import Sampling


class Chooser:
    """Chooses the tokens of one row as :class:`.Sampling` says, with a generator of its own."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], device: torch.device, mask: GrammarMask | None = None
    ) -> None:
        """``mask`` says which tokens there are to choose from; None: all."""
        unpadded = torch.ones(1, len(prompt), dtype=torch.long, device=device)
        self._processors = processors(sampling, unpadded, mask=mask)
        self._ids = torch.tensor([list(prompt)], device=device)

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is chosen, whatever was said before."""
        return not self._processors

    def next(self, logits: Tensor) -> int:
        """Return the next token by ``logits`` (V,); it counts as seen."""
        token = self._processors(self._ids, logits[None].float()).argmax(-1, keepdim=True)
        self._ids = torch.cat([self._ids, token], dim=1)
        return int(token)

    def copy(self) -> Chooser:
        """Return a chooser that will choose what this one would."""
        other = copy.copy(self)
        other._processors = copied(self._processors)
        return other


def choose(choosers: Sequence[Chooser], logits: Tensor) -> list[int]:
    """Return the next token of every row by ``logits`` (B, V)."""
    likeliest: list[int] = logits.max(-1).indices.tolist()  # argmax is four times as slow in bfloat16
    return [
        token if chooser.plain else chooser.next(row)
        for token, chooser, row in zip(likeliest, choosers, logits, strict=True)
    ]
