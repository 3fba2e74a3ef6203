"""Tests of decoding with our own cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def adapted_layers(module: Any) -> nn.Module:
    """Return the linear layers in ``module`` with PEFT's adapters on them, which add to their outputs."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v"], init_lora_weights=False)
    adapted: nn.Module = inject_adapter_in_model(config, nn.ModuleDict({"layers": module}))["layers"]
    return adapted.to(next(module.parameters()).dtype)
