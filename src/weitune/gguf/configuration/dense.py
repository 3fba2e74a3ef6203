"""Configurations of families with one feed-forward network in each layer."""

from __future__ import annotations

from weitune.gguf.configuration.stored import Stored, Values, biases, by_kind, common_values, window_values
from weitune.gguf.families.dense import LONG_ROPE
from weitune.gguf.families.gemma import GEMMA_27B
from weitune.gguf.rope import unknown_scaling

_ATTENTION_BIAS = {"attention_bias": "attn_q"}
_GEMMA3_PERIOD = 6


def plain(stored: Stored) -> Values:
    """Families that have nothing of their own but a bias."""
    return {**common_values(stored), **biases(stored, **_ATTENTION_BIAS, mlp_bias="ffn_down")}


def without_window(stored: Stored) -> Values:
    """Families of which some models attend within a window, but not those with this architecture."""
    layers = ["full_attention"] * stored.layers
    return {**plain(stored), "sliding_window": None, "layer_types": layers}


def gemma2(stored: Stored) -> Values:
    """Gemma 2."""
    return {
        **common_values(stored),
        **window_values(stored, 2),
        "query_pre_attn_scalar": _attention_scale(stored),
        "attn_logit_softcapping": stored("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": stored("final_logit_softcapping", 30.0),
    }


def gemma3(stored: Stored) -> Values:
    """Gemma 3."""
    values = common_values(stored)
    return {
        **values,
        **window_values(stored, _GEMMA3_PERIOD),
        "query_pre_attn_scalar": _attention_scale(stored),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": stored.optional("final_logit_softcapping"),
        "rope_parameters": by_kind(stored, values["rope_parameters"]),
    }


def _attention_scale(stored: Stored) -> int:
    large = stored.layers == GEMMA_27B[stored.header.architecture]
    return int(stored("embedding_length") // stored.one("attention.head_count") if large else stored.head)


def phi3(stored: Stored) -> Values:
    """Phi 3 and 4."""
    original = stored("rope.scaling.original_context_length", stored("context_length"))
    rope = _long_rope(stored, original) if LONG_ROPE.keys() <= stored.header.tensors.keys() else None
    return {**common_values(stored, rope), "sliding_window": None, "original_max_position_embeddings": original}


def _long_rope(stored: Stored, original: int) -> Values:
    factors: Values = {key: stored.header.tensors[tensor].read().tolist() for tensor, key in LONG_ROPE.items()}
    return {
        "rope_type": "longrope",
        "rope_theta": stored("rope.freq_base"),
        "partial_rotary_factor": stored("rope.dimension_count", stored.head) / stored.head,
        "original_max_position_embeddings": original,
        **factors,
    }


def olmo2(stored: Stored) -> Values:
    """OLMo 2, and OLMo 3 with its windows."""
    values = plain(stored)
    if not stored.optional("attention.sliding_window"):
        return values
    rope = values["rope_parameters"]
    sliding = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return {
        **values,
        **window_values(stored, 4),
        "rope_parameters": {"full_attention": rope, "sliding_attention": sliding},
    }


def granite(stored: Stored) -> Values:
    """Granite 3. A file that says that rotary positions are not fine-tuned has none in llama.cpp."""
    if not stored("rope.scaling.finetuned", True):
        raise unknown_scaling(stored.header)
    return {
        **plain(stored),
        "attention_multiplier": stored("attention.scale"),
        "embedding_multiplier": stored("embedding_scale"),
        "residual_multiplier": stored("residual_scale"),
        "logits_scaling": stored("logit_scale"),
    }


def seed_oss(stored: Stored) -> Values:
    """Seed-OSS."""
    return {**plain(stored), **biases(stored, attention_out_bias="attn_output")}


def ernie(stored: Stored) -> Values:
    """ERNIE 4.5."""
    return {**common_values(stored), **biases(stored, use_bias="attn_q")}
