"""One forward pass of a decoder over a few tokens of several rows, with a cache.

The blocks are those of :mod:`weitune.model.fast`, without what training needs (:mod:`.steps`). Rows and tokens are
filled up to recurring numbers, because oneDNN generates code for every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weitune.generate.decode.attend import Masks
from weitune.generate.decode.cache import KeyValueCache, Place
from weitune.generate.decode.products import Product, as_stored, can_be_packed, packed
from weitune.generate.decode.rotary import TurnTable
from weitune.generate.decode.steps import BlockStep, MakeProduct, Reading
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.projection import LoraGroup, Projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFILL_TOKENS = 2048
"""Tokens of prompts that are read in one pass, of all rows together."""
_UNIT = 16
"""Prompts are filled up to a multiple of so many tokens."""


class StepDecoder:
    """A model's decoder and output head for inference."""

    def __init__(self, model: PreTrainedModel, blocks: BlockDecoder, *, fixed: bool = False) -> None:
        """Read ``model``, whose blocks are ``blocks``: the adapters as they are now.

        ``fixed``: the weights stay as they are, so copies that multiply faster may be made of them.
        """
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.fixed = fixed and self.device.type == "cpu"
        self.blocks, self.head = blocks, LoraGroup([_as_projection(model.get_output_embeddings())])
        pack = self.fixed and can_be_packed(self.groups, blocks.dtype)

        def make(group: LoraGroup) -> Product:
            return packed(group, blocks.dtype) if pack else as_stored(group, blocks.dtype)

        self._module = blocks.module
        self.turns = TurnTable(blocks.module, self.device)
        self._pass = DecoderPass(blocks, make, self.turns, exact=True)
        self._head = make(self.head)

    @property
    def groups(self) -> list[LoraGroup]:
        """All linear layers: those of the blocks and the output head."""
        return [group for parts in self.blocks.parts for group in parts.groups] + [self.head]

    def new_cache(self, rows: int) -> KeyValueCache:
        return KeyValueCache(len(self.blocks.parts), rows, self.blocks.dtype)

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], cache: KeyValueCache, first: int, start: int = 0) -> Tensor:
        """Read ``prompts`` into the rows from ``first`` on, from position ``start`` on.

        Returns the logits (B, V) of the next token of each.
        """
        last: list[Tensor] = []
        together = max(1, _PREFILL_TOKENS // max(map(len, prompts)))
        for at in range(0, len(prompts), together):
            last += self._read(prompts[at : at + together], cache, first + at, start)
        return self.logits(torch.stack(last))

    def _read(self, prompts: Sequence[Sequence[int]], cache: KeyValueCache, first: int, start: int) -> list[Tensor]:
        """Return the last hidden state (C,) of each of ``prompts``, all of which are read in one pass if short."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        width = -(-longest // _UNIT) * _UNIT if longest > 1 else 1
        ids = torch.tensor([[*prompt, *([0] * (width - len(prompt)))] for prompt in prompts], device=self.device)
        last: list[Tensor | None] = [None] * len(prompts)
        for at in range(0, width, _PREFILL_TOKENS):
            part = ids[:, at : at + _PREFILL_TOKENS]
            hidden = self.forward(part, [start + at] * len(prompts), cache, first).view(*part.shape, -1)
            for row, length in enumerate(lengths):
                if at < length <= at + _PREFILL_TOKENS:
                    last[row] = hidden[row, length - 1 - at]
        return [each for each in last if each is not None]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], positions: list[int], cache: KeyValueCache) -> Tensor:
        """Read one token in each of the first B rows, at its position; return the logits (B, V) of the next ones."""
        count = len(tokens)
        filled = min(_filled(count), cache.rows) - count
        ids = torch.tensor([*tokens, *([0] * filled)], device=self.device)[:, None]
        hidden = self.forward(ids, [*positions, *([0] * filled)], cache, 0)  # a free row's first position is rewritten
        return self.logits(hidden[:count] if filled else hidden)

    @torch.inference_mode()
    def read_on(self, tokens: Sequence[int], position: int, cache: KeyValueCache) -> Tensor:
        """Read tokens of the first row from ``position`` on; return the logits (T, V) after each of them."""
        return self.logits(self.forward(torch.tensor([tokens], device=self.device), [position], cache, 0))

    def forward(self, ids: Tensor, starts: list[int], cache: KeyValueCache, first: int) -> Tensor:
        """Return the hidden states (B·T, C) of ``ids`` (B, T), whose rows begin at the positions ``starts``."""
        return self._pass(self.embed(ids), starts, cache, first)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embedded tokens (B·T, C) of ``ids`` (B, T)."""
        return self.blocks.embed(ids).flatten(0, 1)

    def last_norm(self, hidden: Tensor) -> Tensor:
        """Return what the output head reads, from the hidden states (N, C)."""
        normed: Tensor = self._module.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (N, V) after the hidden states (N, C)."""
        return self._head(self.last_norm(hidden))[0]


class DecoderPass:
    """All blocks, with their products."""

    def __init__(self, blocks: BlockDecoder, make: MakeProduct, turns: TurnTable, *, exact: bool) -> None:
        self._blocks = [BlockStep(parts, layer, make, exact=exact) for layer, parts in enumerate(blocks.parts)]
        self._turns = turns

    def __call__(self, hidden: Tensor, starts: list[int], cache: KeyValueCache, first: int) -> Tensor:
        """Return the hidden states of the embedded tokens ``hidden`` (B·T, C)."""
        tokens = len(hidden) // len(starts)
        positions = torch.tensor(starts, device=hidden.device)[:, None] + torch.arange(tokens, device=hidden.device)
        place = Place(starts, tokens, first, hidden.device)
        reading = Reading(cache, place, self._turns.of(positions, place.end), Masks(positions, place.end))
        for block in self._blocks:
            hidden = block(hidden, reading)
        return hidden


def _filled(rows: int) -> int:
    """Return a recurring number of at least ``rows`` rows: a power of two, or a multiple of 8."""
    return min(1 << (rows - 1).bit_length(), -(-rows // 8) * 8)


def _as_projection(head: Any) -> Projection:
    return Projection(head, tuple(head.weight.shape))
