"""Adapters for vLLM: layer names that vLLM finds, and one scale for all layers.

vLLM looks up an adapter's layers by name and ignores those that it does not find, without an error: the model then
answers as its base. It maps an adapter's names as it maps those of the base's weights, so an adapter fits if its layers
have the names of the base's own files. If the configuration wraps a text model (Qwen3.5, Gemma 3), vLLM loads the whole
model, whose layers are ``language_model.model.layers.*``; every such class also accepts transformers' names,
``model.language_model.layers.*``.

Releases of vLLM that ignore ``rank_pattern`` and ``alpha_pattern`` would scale such layers wrongly. An adapter that has
them is rewritten with one rank and one scale, and so is one of a wrapped model that has the text model's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from weitune.errors import ModelError
from weitune.export.source.adapter_weights import AdapterWeights, LowRankUpdate
from weitune.export.source.export_source import ExportSource
from weitune.files.json_files import write_json
from weitune.model.file_names import ADAPTER_FILES
from weitune.model.load.locate import ModelFiles
from weitune.model.load.names import model_names
from weitune.model.load.weight_files import stored_weights
from weitune.model.lora.adapter_config import read_adapter_config

_CONFIG, _TENSORS = ADAPTER_FILES
_WRAPPED = ("model.language_model.", "language_model.model.")
"""Names of the layers of a wrapped text model that every class of vLLM accepts."""


def checked_adapter(name: str, source: ExportSource) -> AdapterWeights:
    """Return the adapter of the run called ``name``. Raises ModelError if vLLM would refuse or ignore it."""
    adapter = AdapterWeights(source.adapter_folder, model_names(source.files))
    check_kind(dora=adapter.has_magnitudes)
    # In layers that text never reaches, as in a vision tower, B is still zero: nothing is lost.
    check_layers(
        name, source, list(adapter.updates), [layer for layer, each in adapter.updates.items() if each.b.any()]
    )
    return adapter


def check_kind(*, dora: bool) -> None:
    """Raise ModelError if vLLM cannot serve adapters of this kind."""
    if dora:
        raise ModelError("serve.adapter.dora")


def check_layers(name: str, source: ExportSource, layers: Sequence[str], needed: Sequence[str]) -> None:
    """Raise ModelError if vLLM would ignore some of the ``needed`` of the ``layers`` of the adapter called ``name``.

    Names are those in the adapter. A base whose weights have not been downloaded is not looked at.
    """
    if source.files.gguf or not any(source.files.folder.glob("*.safetensors")):
        return  # the layers of a GGUF base have the names that transformers gives them, whatever the file's own are
    base_layers = _layers(source.files)
    wrapped = source.whole_config.get_text_config() is not source.whole_config
    if lost := [layer for layer in needed if not _matches(layer, base_layers, wrapped)]:
        raise _layers_left_out(name, source, layers, lost, base_layers)


def _layers(files: ModelFiles) -> frozenset[str]:
    return frozenset(name.rpartition(".")[0] for name in stored_weights(files.folder))


def _matches(layer: str, base_layers: frozenset[str], wrapped: bool) -> bool:
    """Return whether vLLM applies the adapter's ``layer`` to a base whose files have weights of ``base_layers``."""
    if wrapped:
        return layer.startswith(_WRAPPED) or (layer in base_layers and layer.startswith("model.layers."))
    # Some files omit the first part, as GPT-2's do.
    return layer in base_layers or layer.partition(".")[2] in base_layers


def _layers_left_out(
    name: str, source: ExportSource, layers: Sequence[str], lost: list[str], base_layers: frozenset[str]
) -> ModelError:
    values: dict[str, Any] = {
        "count": len(lost),
        "layers": len(layers),
        "name": name,
        "architecture": (source.whole_config.architectures or [type(source.whole_config).__name__])[0],
        "layer": lost[0],
    }
    return ModelError("serve.adapter.layers_left_out", **values)


def is_rewritten(adapter: AdapterWeights) -> bool:
    """Return whether vLLM gets an equivalent of ``adapter``: layers differ in rank or scale, or have other names."""
    return adapter.renamed or len({(update.rank, update.scale) for update in adapter.updates.values()}) > 1


def write_even(adapter: AdapterWeights, folder: Path) -> None:
    """Write an equivalent adapter with one rank and the scale 1 to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = max(update.rank for update in adapter.updates.values())
    tensors: dict[str, Tensor] = {}
    for layer, update in adapter.updates.items():
        a, b = _padded(update, rank)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = b
    save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
    config = read_adapter_config(adapter.folder) | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    write_json(folder / _CONFIG, config)


def _padded(update: LowRankUpdate, rank: int) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and s B (out, rank) of ``update``, padded with zeros."""
    missing = rank - update.rank
    a = torch.cat([update.a, update.a.new_zeros(missing, update.a.shape[1])])
    b = torch.cat([update.b * update.scale, update.b.new_zeros(update.b.shape[0], missing)], dim=1)
    return a.contiguous(), b.contiguous()
