"""``merged``: a model folder for transformers and vLLM, with the adapter merged into the weights.

    weights        read, merged in float32 and written one tensor at a time, in shards of at most 5 GB
    config.json    the base's own
    tokenizer      the base's own files, with the run's chat template (see :mod:`.chat_template`)
    generation     greedy, with the stop tokens of the tuned model

Cost: the model is read and written once. Memory: the adapter, and a few times the largest tensor.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weitune.errors import ModelError
from weitune.export.formats.safetensors_file import shard_names, shards, slot_bytes, write_safetensors
from weitune.export.source.base_weights import GgufWeights, Slot
from weitune.export.source.export_source import ExportSource
from weitune.export.source.generation_config import write_generation_config
from weitune.files.json_files import write_json
from weitune.model.load.published import without_quantization
from weitune.model.load.text_model import text_class
from weitune.model.load.weight_files import counted
from weitune.progress import Progress

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
              "merges.txt", "tokenizer.model")  # fmt: skip
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Of a base that sees images or hears: the files that say how these become inputs."""
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def write_merged(folder: Path, source: ExportSource, dtype: torch.dtype | None, progress: Progress) -> None:
    """Write the merged model of ``source`` to ``folder``, in ``dtype`` or in the base's number format.

    Raises ModelError if the base is a ``.gguf`` file with weights that cannot be given back to transformers.
    """
    check_complete(source)
    merged = source.merged
    slots = written_slots(merged.slots, dtype)
    parts = shards(slots)
    done = 0
    for name, part in zip(shard_names(len(parts)), parts, strict=True):
        tensors = (merged.read(tensor, slot.dtype) for tensor, slot in part.items())
        counted = _counted(tensors, done, len(slots), progress)
        write_safetensors(folder / name, part, counted)
        done += len(part)
    if len(parts) > 1:
        _write_index(folder, parts)
    _write_config(folder, source, dtype)
    _write_tokenizer(folder, source)
    write_generation_config(folder, source.files, source.stop_tokens, source.tokenizer.pad_token_id)
    for name in _PROCESSORS:
        if (source.files.folder / name).is_file():
            shutil.copyfile(source.files.folder / name, folder / name)
    for pattern in _LICENCES:
        for licence in source.files.folder.glob(pattern):
            shutil.copyfile(licence, folder / licence.name)


def check_complete(source: ExportSource) -> None:
    """Raise ModelError if the base is a ``.gguf`` file with tensors for which transformers has no name."""
    if not source.files.gguf:  # perhaps the weights are not here yet
        return
    if isinstance(source.base, GgufWeights) and (left_out := source.base.left_out):
        raise ModelError("export.merged.left_out", architecture=source.base.architecture.name, **counted(left_out))


def written_slots(slots: Mapping[str, Slot], dtype: torch.dtype | None) -> dict[str, Slot]:
    """Return what a base's tensors become: in ``dtype``, unless that is None.

    Whole numbers stay, and so do tensors in float32 of a base whose others are smaller, such as the biases of routers:
    models compute with them in float32.
    """
    elements: Counter[torch.dtype] = Counter()
    for slot in slots.values():
        elements[slot.dtype] += math.prod(slot.shape) if slot.dtype.is_floating_point else 0
    usual = max(elements, key=elements.__getitem__, default=dtype)

    def written(slot: Slot) -> Slot:
        stays = not slot.dtype.is_floating_point or slot.dtype == torch.float32 != usual
        return slot if dtype is None or stays else Slot(dtype, slot.shape)

    return {name: written(slot) for name, slot in slots.items()}


def _counted(tensors: Iterable[Tensor], done: int, total: int, progress: Progress) -> Iterator[Tensor]:
    for i, tensor in enumerate(tensors, done + 1):
        yield tensor
        progress(i, total)


def _write_index(folder: Path, parts: list[dict[str, Slot]]) -> None:
    places = zip(shard_names(len(parts)), parts, strict=True)
    write_json(
        folder / "model.safetensors.index.json",
        {
            "metadata": {"total_size": sum(slot_bytes(slot) for part in parts for slot in part.values())},
            "weight_map": {tensor: name for name, part in places for tensor in part},
        },
    )


def _write_config(folder: Path, source: ExportSource, dtype: torch.dtype | None) -> None:
    """Copy the base's own config, so that every program that loads the base loads this too; only ``dtype`` changes."""
    if source.files.gguf:
        config = source.whole_config.to_dict()
        config.pop("_name_or_path", None)
        config["architectures"] = [text_class(source.config).__name__]  # for vLLM
        dtype = dtype or torch.float32
    else:
        config = without_quantization(json.loads((source.files.folder / "config.json").read_text(encoding="utf-8")))
    if dtype is not None:
        _name_dtype(config, str(dtype).removeprefix("torch."))
    write_json(folder / "config.json", config)


def _name_dtype(config: dict[str, Any], dtype: str) -> None:
    """Name the number format in ``config``, and in the parts of a wrapper that name one."""
    for part in config.values():
        if isinstance(part, dict) and {"dtype", "torch_dtype"} & part.keys():
            _name_dtype(part, dtype)
    config.pop("torch_dtype", None)
    config["dtype"] = dtype


def _write_tokenizer(folder: Path, source: ExportSource) -> None:
    tokenizer_folder = source.files.tokenizer_folder
    if source.files.gguf and tokenizer_folder == source.files.folder:
        source.tokenizer.save_pretrained(folder)
    else:
        for name in _TOKENIZER:
            if (tokenizer_folder / name).is_file():
                shutil.copyfile(tokenizer_folder / name, folder / name)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    (folder / "chat_template.jinja").write_text(source.template, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config["chat_template"] = source.template  # for programs that do not read chat_template.jinja
    write_json(path, config)
