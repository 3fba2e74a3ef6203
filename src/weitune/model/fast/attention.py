"""Attention over a packed row, by the rule of its :class:`Tree`.

transformers lets a model's attention be replaced by name (``AttentionInterface``) without touching the model: the
keyword argument ``tree`` of the model's forward reaches these functions in every layer. All three compute the same:

    dense    one mask (T, T) for the row: the definition, and the reference in tests
    blocks   for CPUs: each block of rows attends to its ancestors and itself
    flex     for GPUs: FlexAttention, compiled with the rule

The query is (1, H, T, D), key and value (1, G, T, D), and the result (1, T, H, D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor

from weitune.messages import say
from weitune.model.fast.compiled import can_compile
from weitune.model.fast.kernels.blocks import block_attention
from weitune.model.fast.kernels.dense import dense_attention
from weitune.model.fast.kernels.flex import flex_attention
from weitune.model.fast.kernels.scores import Scores
from weitune.model.fast.tree import Tree

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

DENSE, BLOCKS, FLEX = "weitune_tree_dense", "weitune_tree_blocks", "weitune_tree_flex"
KERNELS: dict[str, Callable[..., Tensor]] = {DENSE: dense_attention, BLOCKS: block_attention, FLEX: flex_attention}
"""(query, key, value, tree, scores) to what attention reads."""


def register() -> None:
    """Register the tree attentions with transformers; a second call changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(DENSE, dense_tree_attention)
    AttentionInterface.register(BLOCKS, block_tree_attention)
    AttentionInterface.register(FLEX, flex_tree_attention)


def attention_for(device: torch.device) -> str:
    """Return the name of the fastest tree attention on ``device``."""
    if device.type == "cuda":
        return FLEX if can_compile() else DENSE
    return BLOCKS


def use_tree_attention(model: PreTrainedModel) -> None:
    """Switch the modules of ``model`` to tree attention. Raises ValueError if their attention cannot be replaced."""
    register()
    model.set_attn_implementation(attention_for(model.get_input_embeddings().weight.device))


def use_own_attention(model: PreTrainedModel) -> None:
    """Switch the modules of ``model`` back to attention without a tree, as generating with a cache needs."""
    if model.config._attn_implementation not in (DENSE, BLOCKS, FLEX):
        return
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # the model implements its own attention only
        model.set_attn_implementation("eager")


@contextmanager
def tree_attention(model: PreTrainedModel, *, on: bool = True) -> Iterator[None]:
    """Use tree attention in ``model`` within the block, or attention without a tree if not ``on``; then restore it."""
    before = model.config._attn_implementation
    try:
        (use_tree_attention if on else use_own_attention)(model)
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def _called_by_transformers(compute: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Give ``compute`` (query, key, value, tree, scores, dropout) the signature that transformers calls.

    The result raises ValueError if the model does not pass the tree on, or if its attention is no plain softmax.
    """

    @wraps(compute)
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        tree: Tree | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        dropout: float = 0.0,
        **_: Any,
    ) -> tuple[Tensor, None]:
        if tree is None:
            raise ValueError(say("model.attention.no_keyword_arguments"))
        if position_bias is not None:
            raise ValueError(say("model.attention.not_plain_softmax", feature="position_bias"))
        scores = Scores(scaling, sliding_window, softcap, s_aux)
        return compute(query, key, value, tree, scores, dropout), None

    return attention


dense_tree_attention, block_tree_attention, flex_tree_attention = map(
    _called_by_transformers, (dense_attention, block_attention, flex_attention)
)
