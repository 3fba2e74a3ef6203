"""Initialisations of an adapter that need more than random numbers and the base's weights.

init_from   another adapter's tensors
eva         A: the directions in which the inputs of a layer vary most (Paischer et al., arXiv 2410.07170); B zero.
            Every layer keeps the recipe's rank: the paper's redistribution of ranks is left out
loftq       s B A: the best approximation of W - Q, the rounding error of 4-bit storage, by singular values
            (Li et al., arXiv 2310.08659, with one iteration, so that Q is what any 4-bit loading gives)
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from weitune.errors import ModelError
from weitune.files.paths import user_path
from weitune.messages import say
from weitune.model.batch import PackedTensors, TensorBatch
from weitune.model.file_names import ADAPTER_FILES, ADAPTER_FOLDER, holds_adapter
from weitune.model.load.locate import ModelFiles
from weitune.model.load.names import text_tensors
from weitune.model.load.published import dense_tensors
from weitune.model.lora.adapter_config import CHANGED_BASE, read_adapter_config
from weitune.model.lora.trainable_state import LoraAdapter
from weitune.model.lora.wrapped_adapter import in_wrapper
from weitune.model.storage.weight_storage import dense, is_quantized
from weitune.model.supervised import hidden_states

if TYPE_CHECKING:
    from peft import PeftModel

EVA_STEPS = 16
"""Optimizer steps whose examples EVA uses."""
_RECIPE_KEYS = {"lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora"}
"""Of the recipe's ``lora``, by PEFT's names where these differ."""


def adapter_folder(place: str) -> Path:
    """Return ``place`` if it is an adapter's folder, or that of a run's final adapter; ModelError if it is neither."""
    for folder in (user_path(place), user_path(place) / ADAPTER_FOLDER):
        if holds_adapter(folder):
            return folder
    config, weights = ADAPTER_FILES
    raise ModelError("model.adapter_init.no_adapter", place=place, config=config, weights=weights)


def start_from(adapter: LoraAdapter, folder: Path) -> None:
    """Load the adapter in ``folder`` into ``adapter``. Raises ModelError with all differences if they do not match."""
    ours, theirs = json.loads(adapter.config()), read_adapter_config(folder)
    differences = [
        say("model.adapter_init.other_value", key=_RECIPE_KEYS.get(name, name), here=ours[name], there=theirs.get(name))
        for name in ("r", *_RECIPE_KEYS, "rank_pattern", "alpha_pattern")
        if (ours[name] or None) != (theirs.get(name) or None)
    ]
    if str(theirs.get("init_lora_weights")).lower().startswith(CHANGED_BASE):
        there = theirs["init_lora_weights"]  # it fits a base that it took its start out of, not the published one
        differences.append(say("model.adapter_init.other_value", key="init_lora_weights", here=True, there=there))
    tensors = in_wrapper(load_file(folder / ADAPTER_FILES[1]), adapter.names)
    shapes = adapter.shapes()
    for name in sorted(shapes.keys() ^ tensors.keys()):
        only_here = say("model.adapter_init.only_here", name=name)
        differences.append(only_here if name in shapes else say("model.adapter_init.only_there", name=name))
    differences += [
        say("model.adapter_init.other_shape", name=name, here=tuple(shapes[name]), there=tuple(tensors[name].shape))
        for name in sorted(shapes.keys() & tensors.keys())
        if shapes[name] != tensors[name].shape
    ]
    if differences:
        shown = "\n  ".join(differences[:10])
        raise ModelError("model.adapter_init.other_adapter", folder=folder, differences=shown)
    adapter.load(tensors)


def start_eva(model: PeftModel, batches: Sequence[TensorBatch]) -> None:
    """Set the A matrices of ``model`` from the inputs of its layers while it computes ``batches``.

    Raises ModelError if the batches have too few tokens for the adapter's rank.
    """
    from peft import EvaConfig, get_eva_state_dict

    config = model.peft_config["default"]
    ranks = [config.r, *config.rank_pattern.values()]
    tokens = min(batch.input_ids.numel() for batch in batches)
    if tokens < max(ranks):
        raise ModelError("model.adapter_init.eva_needs_tokens", tokens=tokens, rank=max(ranks))

    def forward(model: PeftModel, batch: TensorBatch) -> None:
        hidden_states(model.get_base_model(), batch)

    def read(inputs: Any, batch: TensorBatch, name: str) -> Tensor:
        states: Tensor = (inputs if isinstance(inputs, Tensor) else inputs[0]).flatten(0, -2)
        return states if isinstance(batch, PackedTensors) else states[batch.attention_mask.flatten().bool()]

    largest = copy.copy(config)  # PEFT would exchange ranks between layers with other inputs and other ranks
    largest.r, largest.rank_pattern, largest.eva_config = max(ranks), {}, EvaConfig(rho=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that it cannot move the batches, which are on the device already
        functions = {"forward_fn": forward, "prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": read}
        options = {"gather_distributed_inputs": False, "show_progress_bar": False}
        directions = get_eva_state_dict(model, batches, largest, **functions, **options)
    for name, found in directions.items():  # those of the largest variance come first
        a = model.get_submodule(name).lora_A["default"].weight
        rows = min(len(found), len(a))  # a narrow layer has fewer directions than ranks
        with torch.no_grad():
            a[:rows].copy_(found[:rows])


def start_loftq(model: PeftModel, files: ModelFiles) -> None:
    """Set A and B of every 4-bit layer from the rounding error of its weight, which is read from ``files``."""
    tensors = dense_tensors(files.folder)
    names = {text: name for name, text in text_tensors(files).items()}
    for name, layer in model.get_base_model().named_modules():
        base = getattr(layer, "base_layer", None)
        if not hasattr(layer, "lora_A") or not is_quantized(base):
            continue
        if f"{name}.weight" not in names:
            raise ModelError("model.adapter_init.loftq_needs_weights", name=name, folder=files.folder)
        error = tensors[names[f"{name}.weight"]].read(torch.float32) - dense(base, torch.float32).cpu()
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(error, q=a.shape[0], niter=16)
        root = (values / layer.scaling["default"]).sqrt()
        a.data.copy_(root[:, None] * right.T)
        b.data.copy_(left * root)
