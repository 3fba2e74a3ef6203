"""Adapters that cannot be added to a base's weights are refused, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.runs import save_run
from weitune.errors import RunError
from weitune.export.source.adapter_weights import AdapterWeights, LowRankUpdate
from weitune.export.source.export_source import open_export_source


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = save_run(tmp_path / "run").adapter_folder()
    assert folder is not None
    return folder


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "its PEFT type is IA3"),
        ({"fan_in_fan_out": True, "lora_bias": True}, "it has fan_in_fan_out; it has lora_bias"),
        ({"bias": "all"}, "it trains biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "its initialization 'pissa_niter_4' has changed the base's weights"),
    ],
)
def test_what_is_not_a_low_rank_update_is_refused(adapter: Path, changes: dict[str, Any], reason: str) -> None:
    change_config(adapter, **changes)
    with pytest.raises(RunError, match="cannot be exported") as error:
        AdapterWeights(adapter)
    assert reason in error.value.message


@pytest.mark.parametrize("name", ["base_model.model.lm_head.weight", "base_model.model.x.lora_embedding_A"])
def test_tensors_of_other_kinds_are_refused(adapter: Path, name: str) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({**tensors, name: torch.zeros(2, 2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(RunError, match="not low-rank updates") as error:
        AdapterWeights(adapter)
    assert name in error.value.message


def test_half_an_update_is_refused(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    lost = next(name for name in tensors if "lora_B" in name)
    save_file({name: t for name, t in tensors.items() if name != lost}, adapter / "adapter_model.safetensors")
    with pytest.raises(RunError, match="incomplete"):
        AdapterWeights(adapter)


def test_a_torn_file_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="cannot be read"):
        AdapterWeights(adapter)


def test_another_base_is_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2")
    other = save_run(tmp_path / "other", "qwen2")
    from tests.tiny import tiny_model

    tiny_model("qwen2", hidden_size=32).save_pretrained(other.recipe.model)
    source = open_export_source(other)
    name = next(iter(source.merged.updates))
    with pytest.raises(RunError, match="but the base's has"):
        source.merged.read(name)
    tiny_model("qwen2", num_hidden_layers=1).save_pretrained(run.recipe.model)
    with pytest.raises(RunError, match="7 weights that the base's files do not have"):
        _ = open_export_source(run).merged


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    from weitune.errors import ModelError

    run = save_run(tmp_path / "run")
    path = Path(run.recipe.model) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="are quantized"):
        _ = open_export_source(run).base


def test_the_update_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    w, a, b, m = torch.randn(6, 5), torch.randn(2, 5), torch.randn(6, 2), torch.rand(6)
    assert torch.allclose(LowRankUpdate(a, b, 0.5).applied(w), w + 0.5 * b @ a)
    weight = LowRankUpdate(a, b, 0.5, m).applied(w)
    assert torch.allclose(weight.norm(dim=1), m)
    assert torch.allclose(torch.nn.functional.normalize(weight), torch.nn.functional.normalize(w + 0.5 * b @ a))
