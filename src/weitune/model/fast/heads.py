"""What an attention layer does between its projections: norms of heads, rotary embedding and attention."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weitune.model.fast.attention import attention_for
from weitune.model.fast.compiled import fused


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """The attention of one layer: H query heads and G key and value heads of size D."""

    module: Any
    size: int
    """D"""
    scaling: float
    """of the scores"""
    window: int | None
    """how many tokens back a token sees, itself included; None: all"""
    norms: tuple[Any, Any]
    """of query and key heads, or None"""
    rotate: Callable[..., tuple[Tensor, Tensor]]
    """the model's rotary embedding of query and key (B, H, T, D) by cosines and sines (B, T, D)"""

    def split(
        self, query: Tensor, key: Tensor, value: Tensor, rows: int, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the heads (B, H or G, T, D) of B ``rows``, from projections (B·T, H·D or G·D)."""
        heads = [x.view(rows, len(x) // rows, -1, self.size) for x in (query, key, value)]
        query, key = (norm(x) if norm is not None else x for norm, x in zip(self.norms, heads[:2], strict=True))
        query, key = self.rotate(query.transpose(1, 2), key.transpose(1, 2), *rotary)
        return query, key, heads[2].transpose(1, 2)

    def __call__(self, projected: Sequence[Tensor], positions: Any) -> Tensor:
        """Return what attention reads, (T, H·D), for projections q (T, H·D), k and v (T, G·D) of a packed row.

        ``positions`` has the row's tree and rotary embedding. Differentiable by autograd.
        """
        from transformers import AttentionInterface

        query, key, value = projected
        query, key, value = self.split(query, key, value, 1, positions.rotary)
        tree_attention = AttentionInterface()[attention_for(query.device)]
        options = {"tree": positions.tree, "scaling": self.scaling, "sliding_window": self.window}
        out, _ = tree_attention(self.module, query, key, value, None, **options)
        flat: Tensor = out.reshape(out.shape[1], -1)
        return flat


def read_heads(attention: Any) -> Heads | None:
    """Return the heads of a module of attention; None if it has not the parts that Llama-like families share."""
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    size, scaling = getattr(attention, "head_dim", None), getattr(attention, "scaling", None)
    if attention is None or rotate is None or size is None or scaling is None:
        return None
    norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    config = getattr(attention, "config", None)  # Mistral has the window here, other families in the layer
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None)) or None
    return Heads(attention, size, scaling, window, norms, fused(rotate))
