"""Arrange a layer whose parts are joined by more than sums, by their names: those of Gemma 4.

    attention, then the feed-forward layer, each between two norms
    perhaps experts beside the feed-forward layer, each of them between norms of its own within these
    perhaps per-layer embeddings as a third branch

The comparison with the model's own modules shows whether the names mean this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.model.fast.channel.per_layer import per_layer_name, read_per_layer_input
from weitune.model.fast.channel.side_by_side import SideBySide
from weitune.model.fast.experts.read import read_experts_beside
from weitune.model.fast.norm import Norm
from weitune.model.fast.parts import BlockParts, Branch, Mixer


def arrange_by_name(layer: Any, mixers: Mapping[str, Mixer], norms: Mapping[str, Norm]) -> BlockParts | None:
    """Return the block that ``layer`` computes with its ``mixers`` and ``norms``, or None if one has another name."""
    try:
        attention = Branch(norms["input_layernorm"], mixers["self_attn"], norms["post_attention_layernorm"])
        before, after = norms["pre_feedforward_layernorm"], norms["post_feedforward_layernorm"]
        feed_forward: Branch | None = Branch(before, mixers["mlp"], after)
        if hasattr(layer, "router"):
            feed_forward = _with_experts(layer, mixers, norms)
        branches = [attention, feed_forward]
        if hasattr(layer, "per_layer_input_gate"):
            embeddings = read_per_layer_input(layer, per_layer_name(layer.layer_idx))
            post = norms["post_per_layer_input_norm"]
            branches.append(Branch(None, embeddings, post) if embeddings else None)
    except KeyError:
        return None
    known = [branch for branch in branches if branch]
    scale = getattr(layer, "layer_scalar", 1.0)
    return BlockParts(known, layer, scale=float(scale)) if len(known) == len(branches) else None


def _with_experts(layer: Any, mixers: Mapping[str, Mixer], norms: Mapping[str, Norm]) -> Branch | None:
    experts = read_experts_beside(layer, norms["pre_feedforward_layernorm_2"])
    if experts is None:
        return None
    dense = Branch(norms["pre_feedforward_layernorm"], mixers["mlp"], norms["post_feedforward_layernorm_1"])
    routed = Branch(None, experts, norms["post_feedforward_layernorm_2"])
    return Branch(None, SideBySide([dense, routed]), norms["post_feedforward_layernorm"])
