"""The layout of a model's files gives every parameter its place, and merging into it changes what the adapter changes.

All families of :mod:`tests.families`, saved as they are published: matrices of single experts in the files where
transformers stacks them, other names in the files than in the model, a tower beside the text model.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.export.runs import logits
from tests.families import FAMILIES, family_model
from weitune.export.formats.safetensors_file import write_safetensors
from weitune.export.source.adapter_weights import AdapterWeights
from weitune.export.source.base_weights import MergedWeights, SafetensorsWeights
from weitune.export.source.layout import layout_of
from weitune.model.load.locate import ModelFiles
from weitune.model.lora.experts import expert_parameters

IDS = torch.arange(3, 67)[None]
_REMAPPED = ("gate_proj", "up_proj", "down_proj")
"""Modules of these names are experts to PEFT in some families, so they are named by their parameters."""
_NOT_ADAPTED = re.compile(r"(vision|visual|router|\bgate\b|dt_proj|(mamba|mixer)\.out_proj)")
"""Towers and routers; and what PEFT refuses or what has no effect, because the weight is used without its layer."""


def _of_block(name: str) -> bool:
    return ".layers." in name and _NOT_ADAPTED.search(name) is None


def adapted(model: Any, seed: int = 1, **config: Any) -> Any:
    """Return ``model`` with a random adapter of PEFT on the linear layers of its text model's blocks and on experts."""
    from peft import LoraConfig, get_peft_model

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _of_block(name)]
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "init_lora_weights": False,
        "target_modules": "|".join(re.escape(name) for name in names if name.rpartition(".")[2] not in _REMAPPED),
        "target_parameters": [f"{name}.weight" for name in names if name.rpartition(".")[2] in _REMAPPED]
        + [each.full_name for each in expert_parameters(model)],
        **config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()


def merged_weights(folder: Path, adapter: Path) -> MergedWeights:
    base = SafetensorsWeights(folder)
    return MergedWeights(base, AdapterWeights(adapter), layout_of(ModelFiles(folder), base.slots))


def merge(folder: Path, adapter: Path, output: Path) -> None:
    merged = merged_weights(folder, adapter)
    output.mkdir()
    write_safetensors(output / "model.safetensors", merged.slots, (merged.read(name) for name in merged.slots))
    for path in folder.glob("*.json"):
        (output / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_files_are_base_and_adapter(family: str, tmp_path: Path) -> None:
    model = family_model(family)
    model.save_pretrained(tmp_path / "base")
    base = logits(model, IDS)
    tuned = adapted(copy.deepcopy(model))
    tuned.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    loaded, report = type(model).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = logits(tuned, IDS)
    assert (logits(loaded.eval(), IDS) - expected).abs().max() < 1e-4 * expected.abs().max().clamp_min(1)
    assert (base - expected).abs().max() > 0.01


def test_tensors_that_transformers_does_not_load_are_copied(tmp_path: Path) -> None:
    """DeepSeek-V3 is published with a further layer, which predicts the token after the next."""
    model = family_model("deepseek_v3")
    model.save_pretrained(tmp_path / "base")
    adapted(model).save_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "base/model.safetensors")
    further = {
        name.replace("layers.1.", "layers.2."): each.clone() for name, each in tensors.items() if "layers.1." in name
    }
    save_file({**tensors, **further}, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    merged = merged_weights(tmp_path / "base", tmp_path / "adapter")
    assert all(merged.read(name).equal(tensor) for name, tensor in further.items())
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert not merged.read(name).equal(tensors[name])


@pytest.mark.parametrize("family", ["qwen3_moe", "nemotron_h"])
def test_files_may_have_the_models_own_names_and_stacked_experts(family: str, tmp_path: Path) -> None:
    model = family_model(family)
    model.save_pretrained(tmp_path / "base")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    tuned = adapted(model)
    tuned.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert set(load_file(tmp_path / "merged/model.safetensors")) == set(tensors)
    loaded = type(model).from_pretrained(tmp_path / "merged").eval()
    expected = logits(tuned, IDS)
    assert (logits(loaded, IDS) - expected).abs().max() < 1e-4 * expected.abs().max().clamp_min(1)


def test_the_matrices_of_one_expert_are_merged_at_a_time(tmp_path: Path) -> None:
    model = family_model("qwen3_moe")
    model.save_pretrained(tmp_path / "base")
    adapted(model).save_pretrained(tmp_path / "adapter")
    merged = merged_weights(tmp_path / "base", tmp_path / "adapter")
    read, asked = merged.base.read, list[str]()

    def watched(name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        asked.append(name)
        return read(name, dtype)

    merged.base.read = watched  # type: ignore[method-assign]
    for name in merged.slots:
        asked.clear()
        merged.read(name)
        assert len(asked) <= 2, (name, asked)
    experts = [name for name in merged.slots if ".experts." in name]
    assert len(experts) == 4 * 3
    assert asked  # the last one was not remembered
