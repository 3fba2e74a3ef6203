"""Attention over a packed row: token i sees token j exactly when ``j <= i < subtree_end[j]``.

transformers lets a model's attention be replaced by name (``AttentionInterface``) without touching the model: the
keyword argument ``tree`` of the model's forward arrives here in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.data.pack import PackedBatch

if TYPE_CHECKING:
    from torch import nn

DENSE = "weitune_tree_dense"


@dataclass(slots=True, eq=False)
class Tree:
    """The shape of a packed row as tensors on the model's device, with the masks made from it so far."""

    position_ids: Tensor
    """(T,)"""
    subtree_end: Tensor
    """(T,)"""
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: PackedBatch, device: torch.device) -> Tree:
        """Copy the shape of ``batch`` to ``device``."""
        return cls(torch.from_numpy(batch.position_ids).to(device), torch.from_numpy(batch.subtree_end).to(device))

    def mask(self, window: int | None = None) -> Tensor:
        """Return the boolean mask (T, T); with ``window``, a token also sees only that many positions back."""
        if window not in self.masks:
            row = torch.arange(len(self.subtree_end), device=self.subtree_end.device)
            seen = (row[None, :] <= row[:, None]) & (row[:, None] < self.subtree_end[None, :])
            if window is not None:
                seen &= self.position_ids[:, None] - self.position_ids[None, :] < window
            self.masks[window] = seen
        return self.masks[window]


def register() -> None:
    """Make the tree attentions known to transformers by name. Calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(DENSE, dense_tree_attention)


def dense_tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Tree | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Compute attention with the rule as a dense mask: the definition that faster paths are tested against.

    ``query`` is (1, H, T, D), ``key`` and ``value`` (1, G, T, D); the result is (1, T, H, D). Memory grows with T².
    """
    refuse_what_trees_lack(tree, extra)
    assert tree is not None
    mask = tree.mask(sliding_window)[None, None]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2), None


def refuse_what_trees_lack(tree: Tree | None, extra: dict[str, Any]) -> None:
    """Raise ValueError if the model did not pass the tree on, or asks for attention that is not a plain softmax."""
    if tree is None:
        raise ValueError("the model does not pass keyword arguments on to its attention")
    for name in ("softcap", "s_aux", "position_bias"):
        if extra.get(name) is not None:
            raise ValueError(f"the model's attention uses {name}")
