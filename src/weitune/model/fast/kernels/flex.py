"""Tree attention for GPUs: FlexAttention (Dong et al., arXiv 2412.05496), compiled once for all lengths of a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weitune.messages import say
from weitune.model.fast.compiled import fused
from weitune.model.fast.kernels.scores import Scores
from weitune.model.fast.tree import Tree


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, scores: Scores, dropout: float = 0.0
) -> Tensor:
    """Return what :func:`.dense_attention` returns.

    Keys and values are copied for each of their query heads: with few key heads backward would keep few of a GPU's
    processors busy. Raises ValueError for dropout of attention weights, which few models use in training.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    if dropout:
        raise ValueError(say("model.attention.not_plain_softmax", feature="dropout"))
    window, attending = scores.window, tree.attending

    def rule(batch: Tensor, head: Tensor, row: Tensor, j: Tensor) -> Tensor:
        i = row if attending is None else attending[row]
        seen = (j <= i) & (i < tree.subtree_end[j])
        if window is not None:
            seen = seen & (tree.position_ids[i] - tree.position_ids[j] < window)
        return seen

    rows, keys = query.shape[2], key.shape[2]
    block_mask = tree.once(
        ("flex", window), lambda: create_block_mask(rule, None, None, rows, keys, device=query.device)
    )
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, dim=1) if repeat > 1 else x for x in (key, value))
    number, cap = scores.cap, None
    if number is not None:
        cap = tree.once(("cap", number), lambda: torch.full((), number, device=query.device))
    return _fused_flex(query, key, value, block_mask, scores.scaling, cap, scores.sinks)


@fused
def _fused_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Any,
    scaling: float | None,
    cap: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """Compute attention; the cap is a tensor because a score function that is compiled may read no other numbers."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    options: dict[str, Any] = {"block_mask": block_mask, "scale": scaling}
    if cap is not None:
        options["score_mod"] = lambda score, batch, head, i, j: cap * torch.tanh(score / cap)
    out: Any
    if sinks is None:
        out = flex_attention(query, key, value, **options)
    else:  # exp(lse) / (exp(lse) + exp(sink)) of the weight is left for the keys
        out, aux = flex_attention(query, key, value, return_aux=AuxRequest(lse=True), **options)
        out = out * torch.sigmoid(aux.lse - sinks[None, :, None]).to(out.dtype).unsqueeze(-1)
    turned: Tensor = out.transpose(1, 2).contiguous()
    return turned
