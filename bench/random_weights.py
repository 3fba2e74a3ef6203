"""Models with random weights in 4 bits, made layer by layer where they will lie: as fast and as large as real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def random_nf4(shape: dict[str, Any]) -> Any:
    """Return a model of ``shape`` (transformers' configuration) as 4-bit loading leaves it on a CPU.

    Layers of one shape have the same numbers, each in memory of its own.
    """
    import bitsandbytes as bnb
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    patterns: dict[tuple[int, ...], Any] = {}
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _quantized(bnb, module, patterns))
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                numbers = torch.empty(parameter.shape, dtype=torch.bfloat16)
                numbers = numbers.fill_(1) if numbers.dim() == 1 else numbers.normal_(std=0.02, generator=draw)
                setattr(module, name, nn.Parameter(numbers, requires_grad=False))
    model.is_loaded_in_4bit = True
    return model.eval().requires_grad_(False)


def _quantized(bnb: Any, linear: nn.Linear, patterns: dict[tuple[int, ...], Any]) -> Any:
    shape = (linear.out_features, linear.in_features)
    if shape not in patterns:
        numbers = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
        patterns[shape] = bnb.nn.Params4bit(
            numbers, requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to("cpu")  # fmt: skip
    pattern = patterns[shape]
    made = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=torch.float32,
        quant_type="nf4", device="meta",
    )  # fmt: skip
    made.weight = bnb.nn.Params4bit.from_prequantized(
        pattern.data.clone(), {key: _cloned(value) for key, value in pattern.quant_state.as_dict(packed=True).items()},
        device="cpu",
    )  # fmt: skip
    if linear.bias is not None:
        made.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=torch.bfloat16), requires_grad=False)
    made.support_avx512bf16_for_cpu = False
    return made


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
