"""One forward pass of a decoder over a few tokens of several rows, with a cache.

The blocks are those of :mod:`weitune.model.fast`, without what training needs: h + attention(norm(h)), then
h + feed-forward(norm(h)). Attention of one token reads the heads of a group together, so keys are not repeated:

    query (B, H, 1, D) ─▶ (B, G, H/G, D)     keys, values (B, G, L, D)     ─▶ (B, G, H/G, D) ─▶ (B, H·D)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.generate.decode.cache import KeyValueCache, Place
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.feed_forward import FeedForward
from weitune.model.fast.matmul import linear
from weitune.model.fast.parts import BlockParts
from weitune.model.fast.projection import LoraGroup
from weitune.model.fast.self_attention.mixer import Attention
from weitune.model.fast.self_attention.positions import Positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFILL_TOKENS = 2048
"""Tokens of a prompt that are read in one pass."""
_FEW_ROWS = 16
"""Rows up to which oneDNN may multiply: it reads a matrix faster, but generates code for every number of rows."""


class _Block:
    """A block whose matrices are ready to multiply."""

    def __init__(self, parts: BlockParts, dtype: torch.dtype) -> None:
        first, second = parts.branches
        attention, feed_forward = first.mixer, second.mixer
        if not isinstance(attention, Attention) or not isinstance(feed_forward, FeedForward):
            raise TypeError(type(attention), type(feed_forward))
        heads = attention.heads
        if first.pre is None or second.pre is None or heads.gate or heads.scores.cap or heads.scores.sinks is not None:
            raise ValueError(parts)
        self.norm_in, self.norm_post = first.pre, second.pre
        self.heads, self.activate = heads, feed_forward.activation[0]
        self.qkv, self.out, self.gate_up, self.down = (_projected(group, dtype) for group in parts.groups)


class StepDecoder:
    """A model's decoder and output head for inference. Adapters that are trained on are read when it is made."""

    def __init__(self, model: PreTrainedModel, blocks: BlockDecoder) -> None:
        self.device = model.get_input_embeddings().weight.device
        self._module = blocks.module
        self._dtype = blocks.dtype
        head: Any = model.get_output_embeddings()
        self._head = _times(head, blocks.dtype)
        self._blocks = [_Block(parts, blocks.dtype) for parts in blocks.parts]

    def new_cache(self, rows: int) -> KeyValueCache:
        return KeyValueCache(len(self._blocks), rows)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], cache: KeyValueCache, row: int, start: int = 0) -> Tensor:
        """Read the tokens of a row from position ``start`` on; return the logits (V,) of the next one."""
        hidden = None
        for at in range(0, len(tokens), _PREFILL_TOKENS):
            part = torch.tensor([list(tokens[at : at + _PREFILL_TOKENS])], device=self.device)
            hidden = self._forward(part, [start + at], cache, row)
        assert hidden is not None  # noqa: S101  (for mypy)
        return self._logits(hidden[-1:])[0]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], positions: list[int], cache: KeyValueCache) -> Tensor:
        """Read one token in each of the first B rows, at its position; return the logits (B, V) of the next ones."""
        return self._logits(self._forward(torch.tensor(tokens, device=self.device)[:, None], positions, cache, 0))

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(self._module.norm(hidden))
        return logits

    def _forward(self, ids: Tensor, starts: list[int], cache: KeyValueCache, first: int) -> Tensor:
        """Return the hidden states (B·T, C) of ``ids`` (B, T), whose rows begin at the positions ``starts``."""
        tokens = ids.shape[1]
        position_ids = torch.tensor(starts, device=ids.device)[:, None] + torch.arange(tokens, device=ids.device)
        hidden: Tensor = self._module.embed_tokens(ids).flatten(0, 1).to(self._dtype)
        positions = Positions.of(self._module, hidden[None], position_ids)
        place = Place(starts, tokens, first, ids.device)
        masks = _Masks(position_ids, place.end)
        for layer, block in enumerate(self._blocks):
            projected, heads = block.qkv(block.norm_in.forward(hidden)[0]), block.heads
            query, key, value = heads.split(projected, len(starts), positions.rotary_of(heads.kind))
            keys, values = cache.append(layer, key, value, place)
            attended = _attention(query, keys, values, masks.of(heads.scores.window), heads.scores.scale(heads.size))
            hidden = block.out(attended)[0].add_(hidden)
            gate, up = block.gate_up(block.norm_post.forward(hidden)[0])
            hidden = block.down(block.activate(gate).mul_(up))[0].add_(hidden)
        return hidden


class _Masks:
    """Which of ``length`` keys a query at each of ``positions`` (B, T) sees, for each window."""

    def __init__(self, positions: Tensor, length: int) -> None:
        self._positions, self._length = positions, length
        self._made: dict[int | None, Tensor | None] = {}

    def of(self, window: int | None) -> Tensor | None:
        """Return the mask (B, 1, T, L), true where a key is seen; None if all queries see all keys."""
        if window is not None and self._length <= window:
            window = None
        if window not in self._made:
            self._made[window] = self._mask(window)
        return self._made[window]

    def _mask(self, window: int | None) -> Tensor | None:
        if window is None and self._positions.numel() == 1:
            return None
        keys = torch.arange(self._length, device=self._positions.device)
        distance = self._positions[:, None, :, None] - keys
        return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return softmax(q kᵀ) v of ``query`` (B, H, T, D), shape (B·T, H·D)."""
    rows, heads, tokens, size = query.shape
    groups = keys.shape[1]
    if tokens == 1:
        query = query.view(rows, groups, heads // groups, size)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
        return out.reshape(rows, heads * size)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=groups != heads)
    return out.transpose(1, 2).reshape(rows * tokens, heads * size)


def _projected(group: LoraGroup, dtype: torch.dtype) -> Callable[[Tensor], list[Tensor]]:
    """Return what multiplies by the matrices of ``group``, and by its adapters."""
    frozen = [_times(projection.layer, dtype) for projection in group.projections]
    factors = group.factors(dtype, 1.0)
    if factors is None:
        return lambda x: [times(x) for times in frozen]

    def adapted(x: Tensor) -> list[Tensor]:
        return factors.add_to([times(x) for times in frozen], F.linear(x, factors.a))

    return adapted


def _times(layer: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return what multiplies by the matrix of a linear layer."""
    if type(layer) is not nn.Linear or layer.weight.dtype != dtype:
        return lambda x: layer(x)  # quantized: its own kernel  # noqa: PLW0108
    weight, bias = layer.weight, layer.bias
    return lambda x: (linear if len(x) <= _FEW_ROWS else F.linear)(x, weight, bias)
