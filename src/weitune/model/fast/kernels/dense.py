"""Tree attention by one mask (T, T): the definition, and the reference in tests. Memory grows with T²."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast.kernels.scores import Scores
from weitune.model.fast.tree import Tree


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, scores: Scores, dropout: float = 0.0
) -> Tensor:
    """Return the attention of ``query`` (1, H, T, D) over ``key`` and ``value`` (1, G, T, D): (1, T, H, D)."""
    mask, repeat = tree.mask(scores.window)[None, None], query.shape[1] // key.shape[1]
    if scores.cap is None and scores.sinks is None:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scores.scaling, enable_gqa=repeat > 1
        )
        return out.transpose(1, 2)
    products = scores.scale(query.shape[-1]) * query @ key.repeat_interleave(repeat, dim=1).mT
    if scores.cap is not None:
        products = scores.cap * torch.tanh(products / scores.cap)
    products = products.masked_fill(~mask, float("-inf"))
    if scores.sinks is not None:
        sinks = scores.sinks.to(products.dtype).view(1, -1, 1, 1).expand(*products.shape[:3], 1)
        products = torch.cat([products, sinks], dim=-1)
    exact = torch.float32 if query.dtype.itemsize == 2 else query.dtype
    weights = torch.softmax(products, dim=-1, dtype=exact)[..., : key.shape[2]]
    weights = F.dropout(weights.to(query.dtype), dropout)
    return (weights @ value.repeat_interleave(repeat, dim=1)).transpose(1, 2)
