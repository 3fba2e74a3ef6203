"""Linear layers whose names PEFT takes for experts: trained as all others, and loaded by PEFT from what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.families import family_model
from weitune.model.batch import PaddedTensors
from weitune.model.lora.adapter import attach_adapter
from weitune.model.lora.adapter_init import start_eva
from weitune.model.lora.trainable_state import LoraAdapter
from weitune.recipe.schema import Lora

TOKENS = torch.arange(40, 100)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.eval()(TOKENS).logits
    return output


def randomised(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rank_pattern": {"down_proj": 3, "shared_experts.up_proj": 5}, "alpha_pattern": {"gate_proj": 7}},
        {"layers": ["1"]},
        {"target_modules": ["up_proj"]},
    ],
    ids=str,
)
def test_peft_loads_what_is_saved(keys: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel
    from peft.tuners.lora import Linear

    lora = Lora.model_validate({"dropout": 0.25, **keys})
    model = randomised(attach_adapter(family_model("glm4_moe"), lora, seed=0, base="glm4_moe"))
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.shared_experts.up_proj")
    assert isinstance(layer, Linear)
    assert layer.lora_dropout["default"].p == 0.25
    adapter = LoraAdapter(model)
    (tmp_path / adapter.files[0]).write_bytes(adapter.config())
    save_file({name: tensor.contiguous() for name, tensor in adapter.tensors().items()}, tmp_path / adapter.files[1])
    loaded = PeftModel.from_pretrained(family_model("glm4_moe"), str(tmp_path))
    assert sorted(adapter.tensors()) == sorted(LoraAdapter(loaded).tensors())
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), logits(model), atol=1e-4, rtol=1e-4)
    config = json.loads(adapter.config())
    assert config["lora_dropout"] == 0  # else PEFT refuses to load it
    assert not {"gate_proj", "up_proj", "down_proj"} & set(config["target_modules"])


def test_they_start_and_learn_as_the_others() -> None:
    pattern = {"shared_experts.up_proj": 4}
    model = attach_adapter(family_model("glm4_moe"), Lora(init="eva", rank_pattern=pattern), seed=0, base="glm4_moe")
    name = "base_model.model.model.layers.1.mlp.shared_experts.up_proj.lora_{}.default.weight"
    before = model.get_parameter(name.format("A")).clone()
    empty = torch.zeros(0, dtype=torch.int64)
    start_eva(model, [PaddedTensors(TOKENS, empty, empty, empty, empty.float(), torch.ones_like(TOKENS))] * 2)
    a, b = (model.get_parameter(name.format(part)) for part in "AB")
    assert a.shape == before.shape == (4, 64)
    assert not torch.equal(a, before)
    torch.testing.assert_close(a @ a.T, torch.eye(4), atol=1e-4, rtol=0)  # directions, which EVA finds
    model(TOKENS).logits.square().mean().backward()
    assert b.grad is not None
    assert b.grad.any()
