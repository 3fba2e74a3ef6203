"""Every family of chat models that weitune trains, as a tiny configuration with random weights.

Each entry says only how its family differs from SHAPE: sizes of experts, of recurrent layers, and which layer is of
which kind, so that every kind of layer of the published models is there at least once. The keyword arguments are those
of the family's configuration in transformers. A wrapped family has a vision tower; its entry gives the arguments of
both parts, and :func:`family_model` makes the class that its folder on a hub names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tiny import SHAPE, tiny_tokenizer

Arguments = Mapping[str, Any]

_SLIDING = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}
_ROUTED_EXPERTS = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
}  # fmt: skip
_DELTA_RULE = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
_MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_chunk_size": 16,
}  # fmt: skip
_NEMOTRON = {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16}
_LLAMA4 = {
    "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 64, "intermediate_size_mlp": 128,
    "moe_layers": [1], "no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"],
    "attention_chunk_size": 64,
}  # fmt: skip
_GEMMA4 = {
    **_SLIDING, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "per_layer_config": {"01": {"head_dim": 32}, "03": {"head_dim": 32}}, "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 512,
}  # fmt: skip
DENSE: Mapping[str, Arguments] = {  # Gemma 3n without its towers, which need the package timm
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "mistral": {"sliding_window": None},
    "ministral": _SLIDING,
    "ministral3": {},
    "ernie4_5": {},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25},
    "seed_oss": {},
    "gemma": {},
    "gemma2": {**_SLIDING, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_SLIDING, "query_pre_attn_scalar": 16},
    "gemma3n_text": {
        **_SLIDING, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [128] * 4, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0], "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 512, "laurel_rank": 8,
    },
    "gemma4_text": _GEMMA4,
    "smollm3": {"no_rope_layers": [1, 0]},
    "olmo2": {},
    "olmo3": _SLIDING,
    "exaone4": _SLIDING,
    "cohere2": {**_SLIDING, "logit_scale": 1.0},
    "hunyuan_v1_dense": {},
    "phi3": {"original_max_position_embeddings": 1024},
    "glm4": {},
    "starcoder2": {"sliding_window": None},
    "stablelm": {},
    "apertus": {},
}  # fmt: skip

MOE: Mapping[str, Arguments] = {
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {**_EXPERTS, "mlp_only_layers": [0]},
    "mixtral": _LOCAL_EXPERTS,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32},
    "gpt_oss": {**_SLIDING, **_LOCAL_EXPERTS},
    "ernie4_5_moe": {
        "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 32,
        "moe_layer_start_index": 1, "moe_layer_end_index": 1,
    },
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "intermediate_size": 32},
    "deepseek_v3": {
        **_ROUTED_EXPERTS, "num_key_value_heads": 4, "head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16,
    },
    "glm4_moe": _ROUTED_EXPERTS,
    "llama4_text": _LLAMA4,
    "granitemoe": _LOCAL_EXPERTS,
    "minimax_m2": _LOCAL_EXPERTS,
    "dots1": {**_ROUTED_EXPERTS, "layer_types": ["full_attention"] * 2},
}  # fmt: skip

HYBRID: Mapping[str, Arguments] = {
    "qwen3_5_text": _DELTA_RULE,
    "qwen3_5_moe_text": {**_DELTA_RULE, **_EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_next": {**_DELTA_RULE, **_EXPERTS, "shared_expert_intermediate_size": 64},
    "falcon_h1": {
        **_MAMBA, "mamba_d_ssm": 128, "embedding_multiplier": 2.0, "lm_head_multiplier": 0.5, "key_multiplier": 0.4,
        "mlp_multipliers": [0.9, 0.6], "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.25,
        "ssm_out_multiplier": 0.25, "ssm_multipliers": [0.9, 0.5, 0.7, 0.8, 0.6],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": {
        **_MAMBA, **_LOCAL_EXPERTS, "shared_intermediate_size": 64,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "nemotron_h": {
        **_NEMOTRON, "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 64,
    },
    "nemotron_h_dense": {
        **_NEMOTRON, "model_type": "nemotron_h", "num_hidden_layers": 3, "n_groups": 2,
        "layers_block_type": ["linear_attention", "full_attention", "mlp"],
    },
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "jamba": {
        "num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 16, "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
}  # fmt: skip

_TOWER = {"hidden_size": 32, "intermediate_size": 64, "patch_size": 14}
_LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
_QWEN_TOWER = {**_TOWER, "depth": 1, "num_heads": 2, "out_hidden_size": 64}
_IMAGE = {"image_token_id": 509, "video_token_id": 508}


def _rope(*sections: int, **more: Any) -> Arguments:
    """Return positions in three dimensions, time, height and width, as the models that see images have them."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **more}}


WRAPPED: Mapping[str, Arguments] = {
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **DENSE["gemma3_text"]},
        "vision_config": {"model_type": "siglip_vision_model", **_TOWER, **_LAYERS},
        "mm_tokens_per_image": 4, "image_token_index": 509, "boi_token_index": 508, "eoi_token_index": 507,
    },
    "gemma4": {
        "text_config": {"model_type": "gemma4_text", **_GEMMA4},
        "vision_config": {
            "model_type": "gemma4_vision", **_TOWER, **_LAYERS, "num_key_value_heads": 2, "head_dim": 16,
            "position_embedding_size": 16,
        },
        **_IMAGE, "boi_token_id": 507, "eoi_token_id": 506,
    },
    "qwen3_5": {
        "text_config": {"model_type": "qwen3_5_text", **_DELTA_RULE},
        "vision_config": {**_QWEN_TOWER, "num_position_embeddings": 16},
        **_IMAGE,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **_TOWER, **_LAYERS, "head_dim": 16},
        "image_token_index": 509,
    },
    "mistral3_ministral3": {
        "model_type": "mistral3",
        "text_config": {"model_type": "ministral3"},
        "vision_config": {"model_type": "pixtral", **_TOWER, **_LAYERS, "head_dim": 16},
        "image_token_index": 509,
    },
    "qwen3_vl": {
        "text_config": {"model_type": "qwen3_vl_text", **_rope(4, 2, 2, mrope_interleaved=True)},
        "vision_config": {**_QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_IMAGE,
    },
    "qwen2_5_vl": {
        "text_config": {"model_type": "qwen2_5_vl_text", **_rope(2, 3, 3)},
        "vision_config": {**_QWEN_TOWER, "fullatt_block_indexes": [0]},
        **_IMAGE,
    },
    "internvl": {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {**_TOWER, **_LAYERS, "image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": 509,
    },
    "llama4": {
        "text_config": {"model_type": "llama4_text", **_LLAMA4},
        "vision_config": {
            **_TOWER, **_LAYERS, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
        },
        "image_token_index": 509,
    },
    "glm4v": {
        "text_config": {"model_type": "glm4v_text", **_rope(1, 1, 2, partial_rotary_factor=0.5)},
        "vision_config": {**_QWEN_TOWER, "image_size": 28},
        **_IMAGE,
    },
}  # fmt: skip

GROUPS: Mapping[str, Mapping[str, Arguments]] = {"dense": DENSE, "moe": MOE, "hybrid": HYBRID, "wrapped": WRAPPED}
_GEMMA4_31B = {
    **_GEMMA4, "model_type": "gemma4_text", "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "per_layer_config": {layer: {"head_dim": 32, "num_key_value_heads": 1} for layer in ("01", "03")},
}  # fmt: skip
VARIANTS: Mapping[str, Arguments] = {
    "gemma4_text_31b": _GEMMA4_31B,
    "gemma4_text_26b": {
        **_GEMMA4_31B, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
    },
}  # fmt: skip
"""Published models whose layers have other parts than those of their family's entry above."""
FAMILIES: Mapping[str, Arguments] = {
    **{name: entry for group in GROUPS.values() for name, entry in group.items()}, **VARIANTS,
}  # fmt: skip

FAST = (
    "qwen2", "qwen3", "llama", "mistral", "ministral", "ministral3", "ernie4_5", "granite", "seed_oss", "gemma",
    "gemma2", "gemma3_text", "gemma4_text", "gemma4_text_31b", "gemma4_text_26b", "smollm3", "olmo2", "olmo3",
    "exaone4", "cohere2", "hunyuan_v1_dense", "phi3", "glm4", "starcoder2", "apertus",
    "qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "gpt_oss", "ernie4_5_moe", "hunyuan_v1_moe", "deepseek_v3",
    "glm4_moe", "granitemoe", "minimax_m2", "dots1", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen3_5",
    "falcon_h1", "nemotron_h_dense", "lfm2", "lfm2_moe", "granitemoehybrid", "bamba",
    "gemma3", "gemma4", "mistral3", "mistral3_ministral3", "qwen3_vl", "qwen2_5_vl", "internvl", "glm4v",
)  # fmt: skip
"""Families whose examples share rows and whose blocks weitune's own compute: tests/invariant/test_fast_families.py."""
RECURRENT = tuple(name for name in FAST if name in HYBRID)
"""Those of them that have recurrent layers"""

_TEMPLATES = {"gemma": "gemma", "llama": "llama3", "mistral": "mistral", "ministral": "mistral", "qwen3": "qwen3"}


def template_of(name: str) -> str:
    """Return the chat template of tests.tiny that the family ``name`` comes nearest to."""
    return next((template for prefix, template in _TEMPLATES.items() if name.startswith(prefix)), "chatml")


def family_config(name: str, **overrides: Any) -> Any:
    """Return the configuration of the family ``name``; ``overrides`` are arguments of its text model."""
    from transformers import AutoConfig

    tokens = tiny_tokenizer(template_of(name))
    ends = {f"{end}_token_id": getattr(tokens, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    shape = {key: value for key, value in SHAPE.items() if key != "attn_implementation"}
    arguments = dict(FAMILIES[name])
    model_type = arguments.pop("model_type", name)
    if name in WRAPPED:
        arguments["text_config"] = {**shape, **ends, **arguments["text_config"], **overrides}
    else:
        arguments = {**shape, **ends, **arguments, **overrides}
    return AutoConfig.for_model(model_type, **arguments)


def family_model(name: str, seed: int = 0, **overrides: Any) -> Any:
    """Return a model of the family ``name`` in the class that is published, with random float32 weights, in eval mode.

    Biases, norms and whatever else begins as zeros or ones are random too, so that none can be lost unseen.
    ``overrides`` are arguments of the configuration of its text model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    published = AutoModelForImageTextToText if name in WRAPPED else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = published.from_config(family_config(name, **overrides), dtype=torch.float32)
        for value in model.state_dict().values():
            if value.is_floating_point() and value.min() == value.max():
                value.add_(torch.randn_like(value), alpha=0.1)
    return model.eval()


def save_family(folder: Path | str, name: str, seed: int = 0, **overrides: Any) -> Path:
    """Write a model of the family ``name`` and its tokenizer to ``folder``, and return the folder."""
    tokenizer = tiny_tokenizer(template_of(name))
    model = family_model(name, seed, **overrides)
    if template_of(name) == "gemma":  # Gemma ends turns with a token that is not its eos, and names both here
        end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
