"""GGUF's names of a model's parts, for the families that weitune reads and writes: Llama and Mistral, Qwen2, Qwen3.

    model.layers.0.self_attn.q_proj.weight  ◀─▶  blk.0.attn_q.weight

llama.cpp rotates pairs of neighbouring rows in the llama family where transformers rotates row i with row i + D/2 of a
head (D: head size), so the rows of q and k change places on the way, and with them a bias or a LoRA B matrix. The Qwen
families rotate as transformers does.

    transformers   a0 a1 a2 b0 b1 b2        llama.cpp   a0 b0 a1 b1 a2 b2       (one head, D = 6)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weitune.errors import ModelError
from weitune.gguf.header import GgufHeader

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_TOP_LEVEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_FROM_LAYER = {gguf: huggingface for huggingface, gguf in _IN_LAYER.items()}
_FROM_TOP_LEVEL = {gguf: huggingface for huggingface, gguf in _TOP_LEVEL.items()}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family under its GGUF name, with the head counts that its row order depends on."""

    name: str
    heads: int
    kv_heads: int

    def gguf_name(self, module: str) -> str | None:
        """Return the GGUF name of a module (without ``.weight``), or None if GGUF has no place for it."""
        if match := _LAYER.fullmatch(module):
            part = _IN_LAYER.get(match[2])
            return f"blk.{match[1]}.{part}" if part else None
        return _TOP_LEVEL.get(module)

    def huggingface_name(self, tensor: str) -> str | None:
        """Return transformers' name of a GGUF tensor, or None for one that transformers computes (``rope_freqs``)."""
        stem, _, kind = tensor.rpartition(".")
        if match := _BLOCK.fullmatch(stem):
            part = _FROM_LAYER.get(match[2])
            return f"model.layers.{match[1]}.{part}.{kind}" if part else None
        return f"{_FROM_TOP_LEVEL[stem]}.{kind}" if stem in _FROM_TOP_LEVEL else None

    def to_gguf(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (rows first) of the module or weight ``name`` with its rows in llama.cpp's order."""
        heads = self._reordered_heads(name)
        return tensor if not heads else _transposed(tensor, heads, 2)

    def to_huggingface(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (rows first) of the module or weight ``name`` with its rows in transformers' order."""
        heads = self._reordered_heads(name)
        return tensor if not heads else _transposed(tensor, heads, tensor.shape[0] // heads // 2)

    def _reordered_heads(self, name: str) -> int:
        """Return the number of heads whose rows change places in ``name``."""
        if self.name != "llama":
            return 0
        return self.heads if ".q_proj" in name else self.kv_heads if ".k_proj" in name else 0


def _transposed(tensor: Tensor, heads: int, groups: int) -> Tensor:
    """Read the rows of every head as a table of ``groups`` rows, and transpose that table."""
    split = tensor.reshape(heads, groups, tensor.shape[0] // heads // groups, *tensor.shape[1:])
    return split.transpose(1, 2).reshape(tensor.shape)


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a transformers configuration. Raises ModelError if weitune does not write it."""
    architecture = (config.architectures or ["none"])[0]
    name = _ARCHITECTURES.get(architecture)
    if name is None:
        raise ModelError("gguf.architecture.unknown", architecture=architecture)
    window = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings:
        raise ModelError("gguf.architecture.sliding_window", window_tokens=window, architecture=name)
    return Architecture(name, config.num_attention_heads, config.num_key_value_heads)


def known_architecture(header: GgufHeader) -> Architecture | None:
    """Return the architecture of a ``.gguf`` file, or None if weitune does not write it."""
    name = header.architecture
    heads = header.get(f"{name}.attention.head_count")
    kv_heads = header.get(f"{name}.attention.head_count_kv", heads)
    known = name in _ARCHITECTURES.values() and isinstance(heads, int) and isinstance(kv_heads, int)
    return Architecture(name, heads, kv_heads) if known else None


def architecture_of_gguf(header: GgufHeader) -> Architecture:
    """Return the architecture of a ``.gguf`` file. Raises ModelError if weitune does not write it."""
    architecture = known_architecture(header)
    if architecture is None:
        raise ModelError("gguf.architecture.unknown", architecture=header.architecture)
    return architecture
