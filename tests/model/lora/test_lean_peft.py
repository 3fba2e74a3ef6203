"""Adapters are attached without bitsandbytes, and a quantized model in the same process gets its own kind of them."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from tests.tiny import tiny_model
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

attach_adapter(tiny_model("qwen2"), Lora(), seed=0, base="")
assert "peft" in sys.modules and "bitsandbytes" not in sys.modules, "imported"

import bitsandbytes
import torch

model = tiny_model("qwen2").requires_grad_(False)
for layer in model.model.layers:
    quantized = bitsandbytes.nn.Linear4bit(64, 128, bias=False, quant_type="nf4")
    quantized.weight = bitsandbytes.nn.Params4bit(layer.mlp.up_proj.weight.data, requires_grad=False, quant_type="nf4")
    layer.mlp.up_proj = quantized.to("cpu")
model.is_loaded_in_4bit = True
adapted = attach_adapter(model, Lora(), seed=0, base="")
print(type(adapted.base_model.model.model.layers[0].mlp.up_proj).__name__)
"""


def test_bitsandbytes_is_imported_only_for_quantized_models() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["Linear4bit"]
