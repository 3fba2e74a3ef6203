"""Load the text model of a folder from tensors whose names and layout are those of its files.

The tensors of a vision or audio tower are not read: nothing but their names and shapes, from the headers of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from weitune.model.load.config import GENERATION_CONFIG, dtype_on_disk, read_config, read_whole_config
from weitune.model.load.locate import ModelFiles
from weitune.model.load.names import model_names
from weitune.model.load.text_model import text_class
from weitune.model.load.weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loaded = tuple["PreTrainedModel", Mapping[str, Any]]
"""A model, and transformers' report on what was missing."""


def stored_text_model(
    files: ModelFiles, dtype: torch.dtype | None, placement: Any, options: Mapping[str, Any]
) -> Loaded:
    """Load the text model of ``files`` in ``dtype``; None: as it is stored.

    ``placement`` is a ``device_map``, and ``options`` are further arguments of ``from_pretrained``.
    """
    from safetensors import safe_open

    with ExitStack() as opened:
        tensors: dict[str, Any] = {}
        for path in weight_files(files.folder):
            file = opened.enter_context(safe_open(path, framework="pt"))
            tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
        stored = dtype_on_disk(read_config(files)) or torch.float32
        return text_model(files, tensors, dtype or stored, placement, options)


def text_model(
    files: ModelFiles, tensors: Mapping[str, Any], dtype: torch.dtype, placement: Any, options: Mapping[str, Any]
) -> Loaded:
    """Load the text model of ``files`` from ``tensors``, by the names of the files.

    A tensor is read by indexing it, when it is its turn. ``dtype`` is what it is converted to.
    """
    from transformers import GenerationConfig
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.initialization import no_init_weights

    config, names = read_config(files), model_names(files)
    kind = text_class(config)
    if names.converters:
        register_checkpoint_conversion_mapping(kind.__name__, list(names.converters), overwrite=True)
    if (files.folder / GENERATION_CONFIG).is_file():
        generation = GenerationConfig.from_pretrained(files.folder, local_files_only=True)
    else:
        generation = GenerationConfig.from_model_config(read_whole_config(files))
    with no_init_weights():
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict={text: tensors[name] for name, text in names.in_files(tensors).items() if text is not None},
            generation_config=generation,
            dtype=dtype,
            device_map=placement,
            output_loading_info=True,
            **options,
        )
    model.config.name_or_path = model.name_or_path = str(files.folder)
    return model, report
