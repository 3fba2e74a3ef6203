"""Adapters of a text model whose files have the names of the model that wraps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.families import WRAPPED, save_family
from weitune.generate.open_model import merge_adapter
from weitune.model.file_names import ADAPTER_FILES
from weitune.model.load.names import ModelNames, model_names
from weitune.model.load.weights import load_model
from weitune.model.lora.adapter import attach_adapter
from weitune.model.lora.trainable_state import LoraAdapter
from weitune.model.lora.wrapped_adapter import in_text, in_wrapper
from weitune.recipe.schema import Lora

IDS = torch.randint(3, 400, (2, 17), generator=torch.Generator().manual_seed(3))
CONFIG, WEIGHTS = ADAPTER_FILES


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def tuned(folder: Path, **lora: Any) -> LoraAdapter:
    """Return a random adapter on the text model in ``folder``."""
    loaded = load_model(str(folder), precision="fp32", device="cpu")
    adapted = attach_adapter(loaded.model, Lora(dropout=0.0, **lora), seed=0, base=str(folder))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    return LoraAdapter(adapted, names=model_names(loaded.files))


def write(adapter: LoraAdapter, folder: Path) -> Path:
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in adapter.tensors().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_bytes(adapter.config())
    return folder


def on_wrapper(base: Path, adapter: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    wrapper = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(wrapper, adapter).eval()


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        *((family, {}) for family in WRAPPED),
        ("gemma3", {"layers": ["0"]}),
        ("qwen3_5", {"dora": True, "rank_pattern": {"q_proj": 2}}),
        ("gemma4", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama4", {"experts": True}),
    ],
)
def test_peft_loads_it_on_the_wrapper(family: str, lora: dict[str, Any], tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", family)
    adapter = tuned(base, **lora)
    folder = write(adapter, tmp_path / "adapter")
    expected = logits(adapter.model)
    wrapper = on_wrapper(base, folder)
    assert torch.allclose(logits(wrapper), expected, rtol=0, atol=1e-5)
    with wrapper.disable_adapter():
        assert not torch.allclose(logits(wrapper), expected, rtol=0, atol=0.1)
    assert set(wrapper_tensors(wrapper)) == set(load_file(folder / WEIGHTS))  # so none is in the tower
    loaded = load_model(str(base), precision="fp32", device="cpu")
    merged = merge_adapter(loaded.model, folder, model_names(loaded.files))
    assert torch.allclose(logits(merged), expected, rtol=0, atol=1e-4)


def wrapper_tensors(wrapper: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(wrapper, save_embedding_layers=False)


def test_text_models_own_names_are_read_too(tmp_path: Path) -> None:
    """weitune 0.1.0 wrote them for Qwen3.5, and so does PEFT if the text model was trained by itself."""
    base = save_family(tmp_path / "base", "gemma3")
    adapter = tuned(base)
    expected, names = logits(adapter.model), adapter.names
    adapter.names = ModelNames()
    folder = write(adapter, tmp_path / "adapter")
    assert all(name.startswith("base_model.model.model.layers.") for name in load_file(folder / WEIGHTS))
    model = load_model(str(base), precision="fp32", device="cpu").model
    assert torch.allclose(logits(merge_adapter(model, folder, names)), expected, rtol=0, atol=1e-4)
    again = tuned(base)
    again.load(load_file(folder / WEIGHTS))
    assert torch.equal(logits(again.model), expected)


def test_adapters_in_the_tower_are_left_out(tmp_path: Path) -> None:
    """weitune 0.1.0 put adapters on the tower of Gemma 3, which text does not reach."""
    base = save_family(tmp_path / "base", "gemma3")
    adapter = tuned(base)
    folder = write(adapter, tmp_path / "adapter")
    tensors = load_file(folder / WEIGHTS)
    tower = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"
    tensors |= {f"{tower}.lora_A.weight": torch.ones(8, 32), f"{tower}.lora_B.weight": torch.zeros(32, 8)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    model = load_model(str(base), precision="fp32", device="cpu").model
    merged = merge_adapter(model, folder, adapter.names)
    assert torch.allclose(logits(merged), logits(adapter.model), rtol=0, atol=1e-4)


def test_names_there_and_back() -> None:
    names = ModelNames(
        (("model", "model.language_model"), ("lm_head", "lm_head")),
        ("lm_head", "model.layers"),
        ("model.vision_tower.layers.0.q_proj",),
    )
    text = {"base_model.model.model.layers.0.q_proj.lora_A.weight": 1, "base_model.model.lm_head.lora_A.weight": 2}
    wrapper = in_wrapper(text, names)
    assert list(wrapper) == [
        "base_model.model.model.language_model.layers.0.q_proj.lora_A.weight",
        "base_model.model.lm_head.lora_A.weight",
    ]
    assert in_wrapper(wrapper, names) == wrapper
    assert in_text(wrapper, names) == in_text(text, names) == text
    tower = {"base_model.model.model.vision_tower.layers.0.q_proj.lora_A.weight": 3}
    assert in_text(tower, names) == {}
    assert in_wrapper(tower, names) == tower
    assert in_wrapper(text, ModelNames()) == text == in_text(text, ModelNames())
