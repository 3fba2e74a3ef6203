"""Adapters of a model with a vision or audio tower, by the names of its text model and by those of the whole model.

    in memory                                    model.layers.0.mlp.down_proj
    in a run's folder, for PEFT and for vLLM     model.language_model.layers.0.mlp.down_proj

An adapter by the text model's names can be read too: weitune 0.1.0 wrote some so, and so does PEFT if the text model
was trained by itself. An adapter's tensors in a tower are left out: text never reaches them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file

from weitune.model.file_names import ADAPTER_FILES, holds_adapter
from weitune.model.load.names import ModelNames
from weitune.model.lora.adapter_config import read_adapter_config
from weitune.model.lora.target_names import ends_with, matches, shortest_names

_PREFIX = "base_model.model."
_BY_NAME = ("rank_pattern", "alpha_pattern")

Value = TypeVar("Value")


def in_wrapper(tensors: Mapping[str, Value], names: ModelNames) -> dict[str, Value]:
    """Return an adapter's ``tensors`` by their names in the wrapper, whichever they have; a tower's are kept."""
    if not names.wrapped:
        return dict(tensors)
    texts = {name: _text(name, names) for name in tensors}
    return {name if text is None else _PREFIX + names.in_wrapper(text): tensors[name] for name, text in texts.items()}


def in_text(tensors: Mapping[str, Value], names: ModelNames) -> dict[str, Value]:
    """Return an adapter's ``tensors`` by their names in the text model, whichever they have; without a tower's."""
    if not names.wrapped:
        return dict(tensors)
    return {_PREFIX + text: each for name, each in tensors.items() if (text := _text(name, names)) is not None}


def _text(name: str, names: ModelNames) -> str | None:
    return names.taken_as_text(_bare(name))


def _bare(name: str) -> str:
    return name.removeprefix(_PREFIX)


def config_in_wrapper(
    config: Mapping[str, Any], adapted: Iterable[str], others: Iterable[str], names: ModelNames
) -> dict[str, Any]:
    """Return the configuration of an adapter with which PEFT adapts the same layers in the wrapper, and no tower's.

    ``adapted`` are the text model's modules with an adapter, ``others`` its other modules.
    """
    targets, layers = config["target_modules"] or [], config.get("layers_to_transform")
    wanted = [names.in_wrapper(name) for name in adapted if matches(name, targets, layers)]
    unwanted = [*map(names.in_wrapper, others), *names.towers]
    if isinstance(targets, str) or any(matches(name, targets, layers) for name in unwanted):
        targets, layers = shortest_names(wanted, [*wanted, *unwanted]), None
    parameters = [
        name for end in config.get("target_parameters") or () for name in _parameters_in_wrapper(end, adapted, names)
    ]
    return {
        **_renamed_patterns(config, names.in_wrapper),
        "target_modules": targets,
        "layers_to_transform": layers,
        "target_parameters": sorted(parameters) or None,
    }


def _parameters_in_wrapper(end: str, adapted: Iterable[str], names: ModelNames) -> list[str]:
    """Return ``end``, or full names if the weight of a tower's layer ends so too."""
    if not any(ends_with(f"{name}.weight", end) for name in names.towers):
        return [names.in_wrapper(end)]
    weights = [f"{name}.weight" for name in adapted]
    return [names.in_wrapper(name) for name in weights if ends_with(name, end)]


def config_in_text(config: Mapping[str, Any], tensors: Iterable[str], names: ModelNames) -> dict[str, Any]:
    """Return the configuration with which PEFT adapts the same layers in the text model.

    ``tensors`` are the names of the adapter's tensors in the text model.
    """

    def renamed(name: str) -> str:
        return names.in_text(name) or name

    parameters = [renamed(name) for name in config.get("target_parameters") or ()]
    layers = {_bare(name).rpartition(".lora_A.")[0] for name in tensors if ".lora_A." in name}
    layers |= {_bare(name).rpartition(".lora_embedding_A")[0] for name in tensors if ".lora_embedding_A" in name}
    owners = {parameter.rpartition(".")[0] for parameter in parameters}
    modules = [name for name in layers if not any(matches(_owner(name), [owner]) for owner in owners)]
    return {
        **_renamed_patterns(config, renamed),
        "target_modules": sorted(modules),
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "target_parameters": sorted(parameters) or None,
    }


def _owner(name: str) -> str:
    """Return the module of a parameter's adapter: those of further parameters of it are its ``base_layer``s."""
    while name.endswith(".base_layer"):
        name = name.removesuffix(".base_layer")
    return name


def _renamed_patterns(config: Mapping[str, Any], rename: Any) -> dict[str, Any]:
    patterns = {key: {rename(name): value for name, value in (config.get(key) or {}).items()} for key in _BY_NAME}
    return {**config, **patterns}


@contextmanager
def adapter_in_text(folder: Path, names: ModelNames | None) -> Iterator[Path]:
    """Yield a folder with the adapter of ``folder`` by the text model's names: itself, unless the model is wrapped."""
    if names is None or not names.wrapped or not holds_adapter(folder):
        yield folder
        return
    config_file, weights_file = ADAPTER_FILES
    tensors = in_text(load_file(folder / weights_file), names)
    config = config_in_text(read_adapter_config(folder), tensors, names)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / config_file).write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, Path(scratch) / weights_file, metadata={"format": "pt"})
        yield Path(scratch)
