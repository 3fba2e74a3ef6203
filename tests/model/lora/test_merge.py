"""A plain adapter is merged without PEFT, to the bits of PEFT's merge; every other one is left to PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny, save_tiny_adapter, tiny_model
from weitune.model.lora.merge import merge_plain


def adapted(folder: Path, **options: Any) -> Path:
    from peft import LoraConfig, get_peft_model

    targets = options.pop("target_modules", ["q_proj", "down_proj"])
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tuned = get_peft_model(tiny_model("qwen2"), config)
    tuned.save_pretrained(folder)
    return folder


def merged_by_peft(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    return PeftModel.from_pretrained(tiny_model("qwen2").to(dtype), folder).merge_and_unload().state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        {"target_modules": r".*layers\.1\..*(q_proj|up_proj)"},
    ],
    ids=["plain", "patterns", "expression"],
)
def test_the_weights_are_those_of_peft(options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    folder = adapted(tmp_path / "adapter", **options)
    model = tiny_model("qwen2").to(dtype)
    assert merge_plain(model, folder)
    expected = merged_by_peft(folder, dtype)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    base = tiny_model("qwen2").to(dtype).state_dict()
    assert any(not torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_in_16_bits(tmp_path: Path) -> None:
    folder = adapted(tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}, weights)
    model = tiny_model("qwen2").to(torch.bfloat16)
    assert merge_plain(model, folder)
    expected = merged_by_peft(folder, torch.bfloat16)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [0]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"trainable_token_indices": [3, 4]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_adapters_are_left_to_peft(options: dict[str, Any], tmp_path: Path) -> None:
    folder = adapted(tmp_path / "adapter", **options)
    model = tiny_model("qwen2")
    assert not merge_plain(model, folder)
    base = tiny_model("qwen2").state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_that_does_not_fit_is_left_to_peft(tmp_path: Path) -> None:
    folder = save_tiny_adapter(tmp_path / "adapter", save_tiny(tmp_path / "model"))
    assert not merge_plain(tiny_model("qwen2", hidden_size=32), folder)
    weights = folder / "adapter_model.safetensors"
    whole = load_file(weights)
    first = min(whole)
    save_file({name: tensor for name, tensor in whole.items() if name != first}, weights)
    assert not merge_plain(tiny_model("qwen2"), folder)
    save_file({**whole, "base_model.model.lm_head.lora_C.weight": torch.zeros(1)}, weights)
    assert not merge_plain(tiny_model("qwen2"), folder)
    save_file(whole, weights)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_something_new": True}))
    assert not merge_plain(tiny_model("qwen2"), folder)
