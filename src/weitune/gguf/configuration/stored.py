"""What the metadata of a GGUF file says about a model's shape, in the terms of transformers.

The inverse of :mod:`weitune.gguf.families.fields`. What one family has beside it is in the other modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weitune.errors import ModelError
from weitune.gguf.header import GgufHeader
from weitune.gguf.rope import rope_scaling
from weitune.gguf.vocabulary import stop_tokens, token_id

Values = dict[str, Any]
"""Keyword arguments of a configuration."""
_ROPE_THETA = 10000.0
"""What llama.cpp takes where a file says nothing."""
_TOKENS = {"bos": "bos", "padding": "pad"}


class Stored:
    """The hyperparameters in a file's metadata, without the architecture's name before each key."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.layers = int(self("block_count")) - int(self("nextn_predict_layers", 0))
        """Without those that predict several tokens at once, which transformers does not run."""

    def __call__(self, key: str, default: Any = None) -> Any:
        """Return a value. Raises ModelError if the file does not have it and ``default`` is None."""
        full = f"{self.header.architecture}.{key}"
        found = self.header.get(full, default)
        if found is None:
            raise ModelError("gguf.configuration.lacks_key", key=full)
        return found

    def optional(self, key: str) -> Any:
        """Return a value; None if the file does not have it."""
        return self.header.get(f"{self.header.architecture}.{key}")

    def one(self, key: str, default: Any = None) -> Any:
        """Return a value that is the same in all layers. Raises ModelError if it is not."""
        found = self(key, default)
        if not isinstance(found, list):
            return found
        if len(set(found)) != 1:
            raise ModelError("gguf.configuration.differs_by_layer", key=f"{self.header.architecture}.{key}")
        return found[0]

    def has(self, tensor: str) -> bool:
        """Return whether any layer has this tensor."""
        return any(f"blk.{layer}.{tensor}" in self.header.tensors for layer in range(self.layers))

    @property
    def vocabulary(self) -> int:
        return self.header.tensors["token_embd.weight"].shape[0]

    @property
    def head(self) -> int:
        """The size of an attention head."""
        usual = int(self("embedding_length")) // int(self.one("attention.head_count"))
        return int(self("attention.key_length", usual))


def rope_of(stored: Stored, head: int, *, also: Sequence[str] = ()) -> Values:
    """Return the rotary positions of heads of size ``head``; ``also`` are keys of a family's own scaling.

    Raises ModelError if transformers cannot compute them.
    """
    theta = stored("rope.freq_base", _ROPE_THETA)
    rope = rope_scaling(stored.header, theta, also) or {"rope_type": "default", "rope_theta": theta}
    turned = stored("rope.dimension_count", head)
    return rope if turned == head else {**rope, "partial_rotary_factor": turned / head}


def by_kind(stored: Stored, full: Values) -> Values:
    """Return the rotary positions ``full`` of layers without a window, beside those of layers with one."""
    theta = stored("rope.freq_base_swa", _ROPE_THETA)
    return {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": theta}}


def shape_values(stored: Stored) -> Values:
    """Return what all families have, except for rotary positions."""
    heads = stored.one("attention.head_count")
    tokens = {f"{name}_token_id": token_id(stored.header, key) for key, name in _TOKENS.items()}
    return {
        "max_position_embeddings": stored("context_length"),
        "hidden_size": stored("embedding_length"),
        "num_hidden_layers": stored.layers,
        "num_attention_heads": heads,
        "head_dim": stored.head,
        "rms_norm_eps": stored("attention.layer_norm_rms_epsilon"),
        "vocab_size": stored.vocabulary,
        "tie_word_embeddings": "output.weight" not in stored.header.tensors,
        "eos_token_id": stop_tokens(stored.header),
        **tokens,
    }


def common_values(stored: Stored, rope: Values | None = None) -> Values:
    """Return what families have whose layers are all of the same shape; ``rope`` in place of usual rotary positions."""
    return {
        **shape_values(stored),
        "intermediate_size": stored.one("feed_forward_length", 0),
        "num_key_value_heads": stored.one("attention.head_count_kv", stored.one("attention.head_count")),
        "rope_parameters": rope or rope_of(stored, stored.head),
    }


def biases(stored: Stored, **tensors: str) -> Values:
    """Return for each name whether any layer has the bias of that tensor."""
    return {name: stored.has(f"{tensor}.bias") for name, tensor in tensors.items()}


def expert_counts(stored: Stored, count: str, width: str, usual_width: int | None = None) -> Values:
    """Return the numbers of experts, and the hidden size of each, under a family's names."""
    return {
        count: stored("expert_count"),
        "num_experts_per_tok": stored("expert_used_count"),
        width: stored("expert_feed_forward_length", usual_width),
    }


def layer_types(windowed: Sequence[bool]) -> list[str]:
    """Return the kinds of layers that attend within a window or not."""
    return ["sliding_attention" if window else "full_attention" for window in windowed]


def window_values(stored: Stored, period: int | None = None) -> Values:
    """Return the window and the layers that have it: as the file says, or all but each ``period``-th."""
    pattern = stored.optional("attention.sliding_window_pattern")
    if isinstance(pattern, int) and not isinstance(pattern, bool):  # a period, in some files
        period, pattern = pattern, None
    if pattern is None:
        if period is None:
            raise ModelError("gguf.configuration.lacks_key", key="attention.sliding_window_pattern")
        pattern = [(layer + 1) % period != 0 for layer in range(stored.layers)]
    return {"sliding_window": stored("attention.sliding_window"), "layer_types": layer_types(pattern[: stored.layers])}
