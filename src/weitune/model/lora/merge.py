"""Add a plain adapter to a model's weights, without PEFT, whose import alone takes seconds.

    W + s B A        s = alpha / r, or alpha / sqrt(r)        (LoRA, arXiv 2106.09685; rsLoRA, arXiv 2312.03732)

Plain means LoRA on linear layers and nothing else. Every other adapter, and every one that does not fit the model, is
left to PEFT, which knows all kinds and says what is wrong. The weights are those of PEFT's merge, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from weitune.model.file_names import ADAPTER_FILES
from weitune.model.lora.adapter_config import read_adapter_config
from weitune.model.lora.target_names import matches, pattern_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
_READ = frozenset({"target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "inference_mode"})
"""Options that are carried out here; any other that enables something is PEFT's."""
_MATRICES = ("lora_A", "lora_B")


def merge_plain(model: PreTrainedModel, folder: Path) -> bool:
    """Add the adapter in ``folder`` to the weights of ``model``; return whether it was plain and fits.

    Nothing is changed if not. Raises RunError if the adapter's configuration cannot be read.
    """
    config = read_adapter_config(folder)
    if not _is_plain(config):
        return False
    try:
        tensors = load_file(folder / ADAPTER_FILES[1])
    except Exception:  # noqa: BLE001  (PEFT says what is wrong)
        return False
    updates = _updates(tensors)
    layers = {
        name: module for name, module in model.named_modules() if name and matches(name, config["target_modules"])
    }
    if any(module is model.get_output_embeddings() for module in layers.values()):  # it may be tied
        return False
    if updates is None or updates.keys() != layers.keys():
        return False
    if not all(_fits(layers[name], a, b, _rank(name, config)) for name, (a, b) in updates.items()):
        return False
    products: dict[Any, Tensor] = {}  # written again and again: fresh memory would take as long as the products
    with torch.no_grad():
        for name, (a, b) in updates.items():
            weight = layers[name].weight
            factors = [matrix.to(weight.device, torch.float32) for matrix in (b, a)]
            kind = weight.shape, weight.device
            product = products[kind] = torch.mm(*factors, out=products.get(kind))
            weight.data += product.mul_(lora_scale(name, config, a.shape[0]))
    return True


def _is_plain(config: Mapping[str, Any]) -> bool:
    if config.get("peft_type") != "LORA" or config.get("task_type") not in (None, "CAUSAL_LM"):
        return False
    if config.get("bias", "none") != "none" or config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        return False
    targets = config.get("target_modules")
    if not isinstance(targets, list | str) or targets == "all-linear":
        return False
    return not any(value and isinstance(value, bool | dict | list) for key, value in config.items()
                   if key not in _READ and key != "init_lora_weights")  # fmt: skip


def _updates(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Return A and B by the names of their modules; None if there is anything else."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, matrix = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if matrix not in _MATRICES or not name.startswith(_PREFIX):
            return None
        found.setdefault(module, {})[matrix] = tensor
    if any(len(pair) != len(_MATRICES) for pair in found.values()):
        return None
    return {module: (pair["lora_A"], pair["lora_B"]) for module, pair in found.items()}


def _fits(layer: nn.Module, a: Tensor, b: Tensor, rank: int) -> bool:
    if type(layer) is not nn.Linear or a.dim() != b.dim() or a.dim() != len(layer.weight.shape):
        return False
    return a.shape == (rank, layer.in_features) and b.shape == (layer.out_features, rank)


def _rank(name: str, config: Mapping[str, Any]) -> int:
    rank = pattern_value(config.get("rank_pattern"), name)
    return int(config["r"] if rank is None else rank)


def lora_scale(name: str, config: Mapping[str, Any], rank: int) -> float:
    """Return s of the layer or parameter ``name``, by an adapter's configuration as PEFT writes it."""
    alpha = pattern_value(config.get("alpha_pattern"), name)
    return float(config["lora_alpha"] if alpha is None else alpha) / (
        math.sqrt(rank) if config.get("use_rslora") else rank
    )
