"""Attention of a few new tokens over the keys and values of a cache.

The heads of a group are read together if there are few tokens, so keys are not repeated:

    query (B, H, T, D) ─▶ (B, G, H/G·T, D)     keys, values (B, G, L, D)     ─▶ (B, G, H/G·T, D) ─▶ (B·T, H·D)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast.kernels.scores import Scores

_FEW_TOKENS = 8
"""Tokens up to which the heads of a group are read together."""


class Masks:
    """Which of ``length`` keys a query at each of ``positions`` (B, T) sees, for each window."""

    def __init__(self, positions: Tensor, length: int) -> None:
        self._positions, self._length = positions, length
        self._made: dict[tuple[int | None, int, torch.dtype], Tensor | None] = {}

    def of(self, window: int | None, repeat: int, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the scores: (B, 1, repeat · T, L), 0 where a key is seen and -inf elsewhere.

        None if all queries see all keys.
        """
        if window is not None and self._length <= window:
            window = None
        made = window, repeat, dtype
        if made not in self._made:
            self._made[made] = self._mask(*made)
        return self._made[made]

    def _mask(self, window: int | None, repeat: int, dtype: torch.dtype) -> Tensor | None:
        if window is None and self._positions.numel() == 1:
            return None
        keys = torch.arange(self._length, device=self._positions.device)
        distance = self._positions[:, None, :, None] - keys
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return mask.repeat(1, 1, repeat, 1) if repeat > 1 else mask


def attention(query: Tensor, keys: Tensor, values: Tensor, masks: Masks, scores: Scores) -> Tensor:
    """Return the attention of ``query`` (B, H, T, D) over ``keys`` and ``values`` (B, G, L, D): (B·T, H·D)."""
    rows, heads, tokens, size = query.shape
    groups, scale = keys.shape[1], scores.scale(size)
    repeat = heads // groups
    if scores.cap is not None or scores.sinks is not None:
        return _written_out(query, keys, values, masks, scores)
    if tokens > _FEW_TOKENS:
        mask = masks.of(scores.window, 1, query.dtype)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=repeat > 1)
    else:
        together = query.reshape(rows, groups, repeat * tokens, size)
        mask = masks.of(scores.window, repeat if tokens > 1 else 1, query.dtype)
        out = F.scaled_dot_product_attention(together, keys, values, attn_mask=mask, scale=scale)
        if tokens == 1:
            return out.reshape(rows, -1)
        out = out.view(rows, heads, tokens, -1)
    return out.transpose(1, 2).reshape(rows * tokens, -1)


def _written_out(query: Tensor, keys: Tensor, values: Tensor, masks: Masks, scores: Scores) -> Tensor:
    """Return the attention with a cap of the scores or with sinks."""
    rows, heads, tokens, size = query.shape
    groups = keys.shape[1]
    together = query.reshape(rows, groups, heads // groups * tokens, size)
    products = scores.scale(size) * (together @ keys.mT)
    if scores.cap is not None:
        products = scores.cap * torch.tanh(products / scores.cap)
    mask = masks.of(scores.window, heads // groups, products.dtype)
    products = products if mask is None else products + mask
    if scores.sinks is not None:
        sinks = scores.sinks.to(products.dtype).view(1, groups, -1, 1).expand(rows, -1, -1, 1)
        products = torch.cat([products, sinks.repeat_interleave(tokens, dim=2)], dim=-1)
    weights = torch.softmax(products, dim=-1, dtype=torch.float32)[..., : keys.shape[2]]
    out = (weights.to(values.dtype) @ values).view(rows, heads, tokens, -1)
    return out.transpose(1, 2).reshape(rows * tokens, -1)
