"""Names of layers and weights: in the text model that weitune trains, in the model that wraps it, and in the files.

    text model    model.layers.0.mlp.down_proj                    what runs here
    wrapper       model.language_model.layers.0.mlp.down_proj     adapters: what PEFT and vLLM load
    files         language_model.model.layers.0.mlp.down_proj     an older layout, as Gemma 3 was published
                  vision_tower.…                                  not part of the text model

The wrapper is made on PyTorch's meta device and says where its decoder is; transformers' own rules, which it loads the
wrapper by, translate the names in the files. For a model that is not wrapped all three are the same.

Cost: about a second, once for each model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weitune.model.load.config import read_whole_config
from weitune.model.load.locate import ModelFiles
from weitune.model.load.weight_files import CONFIG, stored_weights

_USUAL = (("model", "model.language_model"), ("lm_head", "lm_head"))
"""Modules of the text model and of nearly every wrapper, for one that cannot be made here."""


@dataclass(frozen=True, slots=True)
class ModelNames:
    """How the names of a text model relate to those of its wrapper. Names of modules and of weights are both taken."""

    pairs: tuple[tuple[str, str], ...] = ()
    """Modules of the text model, each with its name in the wrapper; empty if there is no wrapper."""
    own: tuple[str, ...] = ()
    """The parts of the text model: its head and what its decoder consists of, by their names in the text model."""
    towers: tuple[str, ...] = ()
    """The modules of the wrapper that are not in the text model, by their names in the wrapper."""
    wrapper: str = ""
    """The wrapper's class."""
    rename: Callable[[str], str] | None = field(default=None, repr=False, compare=False)
    """From the name of a tensor in the files to that in the wrapper."""
    converters: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """transformers' conversions of the wrapper's tensors while loading, if it has none for the text model."""

    @property
    def wrapped(self) -> bool:
        """Whether adapters have other names outside weitune than in the text model."""
        return any(text != wrapper for text, wrapper in self.pairs)

    def in_wrapper(self, name: str) -> str:
        """Return the wrapper's name of ``name`` in the text model."""
        found = _exchanged(name, self.pairs)
        return name if found is None else found

    def in_text(self, name: str) -> str | None:
        """Return the text model's name of ``name`` in the wrapper; None if it is in a tower."""
        return _exchanged(name, [(wrapper, text) for text, wrapper in self.pairs]) if self.pairs else name

    def taken_as_text(self, name: str) -> str | None:
        """Return the text model's name of a ``name`` in the wrapper or in the text model; None if it is in neither."""
        text = self.in_text(name)
        return name if text is None and _below(name, self.own) else text

    def in_files(self, names: Iterable[str]) -> dict[str, str | None]:
        """Return for each tensor name of the wrapper's files the name in files of the text model; None in a tower.

        Layouts are those of the file: weights of single experts stay single.
        """
        return {name: self.in_text(name if self.rename is None else self.rename(name)) for name in names}


def model_names(files: ModelFiles) -> ModelNames:
    """Return the names of the model in ``files``. Raises ModelError if its configuration cannot be read."""
    if files.gguf:
        return ModelNames()
    path = files.folder / CONFIG
    return _names(files.folder, path.stat().st_mtime_ns if path.is_file() else 0)


def wrapper_of(files: ModelFiles) -> str | None:
    """Return what the model in ``files`` is called if its text model is only a part of it."""
    whole = read_whole_config(files)
    return None if whole.get_text_config() is whole else (whole.architectures or [type(whole).__name__])[0]


def is_wrapped(files: ModelFiles) -> bool:
    """Return whether the text model is only a part of the model in ``files``, or transformers cannot find its class."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    whole = read_whole_config(files)
    return whole.get_text_config() is not whole or type(whole) not in MODEL_FOR_CAUSAL_LM_MAPPING


def text_tensors(files: ModelFiles) -> Mapping[str, str]:
    """Return every tensor of the text model in ``files``: its name in the files, and in files of the text model."""
    named = model_names(files).in_files(stored_weights(files.folder))
    return {name: text for name, text in named.items() if text is not None}


@cache
def _names(folder: Path, changed: int) -> ModelNames:
    from weitune.model.load.text_model import empty_model, text_class, text_config

    whole = read_whole_config(ModelFiles(folder))
    if whole.get_text_config() is whole:
        return ModelNames()
    config, kind = text_config(whole), _wrapper_class(whole)
    if kind is text_class(config):
        return ModelNames()
    text = empty_model(config)
    try:
        with torch.device("meta"):
            return _compare(text, kind(copy.deepcopy(whole)))
    except Exception:  # noqa: BLE001  (a tower may need a package that is not here)
        return _compare(text, None)


def _compare(text: Any, wrapper: Any) -> ModelNames:
    from weitune.model.load.text_model import TextForCausalLM

    head = "lm_head" if wrapper is None else _name(text, text.get_output_embeddings())
    if wrapper is None:
        pairs: tuple[tuple[str, str], ...] = _USUAL
    elif isinstance(wrapper.get_decoder(), type(text)):
        where = _name(wrapper, wrapper.get_decoder())
        pairs = tuple((name, f"{where}.{name}") for name, _ in text.named_children())
    else:
        decoder = _name(text, text.get_decoder()), _name(wrapper, wrapper.get_decoder())
        pairs = (decoder, (head, _name(wrapper, wrapper.get_output_embeddings())))
    above = _name(text, text.get_input_embeddings()).rpartition(".")[0]
    own = (head, *(f"{above}.{name}" for name, _ in text.get_submodule(above).named_children()))
    if wrapper is None:
        return ModelNames(pairs, own)
    inside = tuple(name for _, name in pairs)
    towers = tuple(name for name, _ in wrapper.named_modules() if name and not _below(name, inside))
    converters = () if _converters(text) or not isinstance(text, TextForCausalLM) else _converters(wrapper)
    return ModelNames(pairs, own, towers, type(wrapper).__name__, _renaming(wrapper), converters)


def _wrapper_class(whole: Any) -> Any:
    """Return the class that the configuration names or transformers has for it; None if there is none."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )

    for name in whole.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING):
        if type(whole) in mapping:
            classes = mapping[type(whole)]
            return classes[0] if isinstance(classes, tuple) else classes
    return None


def _renaming(wrapper: Any) -> Callable[[str], str]:
    """Return what gives tensors of a file the names in ``wrapper``, as transformers renames them while loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    rules = [rule for rule in get_model_conversion_mapping(wrapper) if isinstance(rule, WeightRenaming)]
    known = wrapper.state_dict()

    def rename(name: str) -> str:
        renamed = rename_source_key(name, rules, [], wrapper.base_model_prefix, known)[0]
        if renamed not in known and name in known:
            renamed = rename_source_key(name, [], [], wrapper.base_model_prefix, known)[0]
        return str(renamed)

    return rename


def _converters(model: Any) -> tuple[Any, ...]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    return tuple(rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightConverter))


def _name(model: nn.Module, part: nn.Module) -> str:
    return str(next(name for name, module in model.named_modules() if module is part))


def _below(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _exchanged(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    """Return ``name`` with the first of ``pairs`` that it begins with exchanged for the second; None without one."""
    return next((new + name[len(old) :] for old, new in pairs if _below(name, (old,))), None)
