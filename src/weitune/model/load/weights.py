"""Load a chat model.

Only safetensors and GGUF weights are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weitune.errors import InputError, ModelError, first_line
from weitune.model.load.config import dtype_on_disk, read_config
from weitune.model.load.dequantize import lazily
from weitune.model.load.device import choose_device, choose_dtype, device_map, stored_dtype
from weitune.model.load.gguf_model import gguf_model
from weitune.model.load.locate import ModelFiles, locate
from weitune.model.load.names import is_wrapped
from weitune.model.load.published import dense_tensors, quantization_of
from weitune.model.load.text_weights import stored_text_model, text_model
from weitune.model.load.tokenizer import load_tokenizer
from weitune.model.load.weight_files import counted, stored_weights, weight_files
from weitune.model.storage.allocator import releasing_freed_memory
from weitune.model.storage.shard import shard
from weitune.model.storage.weight_storage import quantization
from weitune.progress import enter_phase
from weitune.recipe.schema import QUANTIZED, Storage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


_EXPERT = re.compile(r"\.experts\.\d+\.")
"""In the name of a tensor of one expert."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model with its tokenizer, and where both came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    files: ModelFiles
    device: torch.device
    dtype: torch.dtype
    """The number format that it computes in."""
    storage: Storage = "auto"
    """How its weights are stored in memory."""
    shards: int = 1
    """Among how many processes its matrices are divided (``train.shard``)."""


def load_model(
    model: str,
    *,
    precision: str = "auto",
    storage: Storage = "auto",
    hub: str = "huggingface",
    revision: str | None = None,
    device: str | None = None,
) -> LoadedModel:
    """Find, download if needed, and load ``model`` and its tokenizer for the device at hand.

    Raises ModelError if the model cannot be found or loaded.
    """
    files = locate(model, hub=hub, revision=revision)
    return load_weights(files, load_tokenizer(files), precision=precision, storage=storage, device=device)


def load_weights(
    files: ModelFiles,
    tokenizer: PreTrainedTokenizerFast,
    *,
    precision: str = "auto",
    storage: Storage = "auto",
    device: str | torch.device | None = None,
    spread: bool | None = None,
    shards: int = 1,
) -> LoadedModel:
    """Load the weights of a model whose tokenizer is here already.

    With several accelerators and no launcher, the layers are spread over them (``device_map="auto"``), unless a
    ``device`` is given; ``spread`` decides it where the device was chosen before. With ``shards``, each of that many
    processes in a process group keeps a part (:mod:`weitune.model.storage.shard`). Raises ModelError if they cannot be
    loaded.
    """
    enter_phase("loading")
    target = choose_device(device)
    dtype = choose_dtype(precision, target)
    if shards == 1:
        model = _load(files, dtype, storage, device_map(target, spread=device is None if spread is None else spread))
    else:
        model = _load(files, dtype, storage, {"": "cpu"}, widened_later=True)
        shard(model, target, stored_dtype(storage, dtype))
    return LoadedModel(model, tokenizer, files, target, dtype, storage, shards)


def _load(
    files: ModelFiles, dtype: torch.dtype, storage: Storage, placement: Any, *, widened_later: bool = False
) -> PreTrainedModel:
    """Load the weights; those that are ``widened_later`` to float32 are left as they are mapped from the file."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    if storage in QUANTIZED and files.gguf:
        raise ModelError("model.weights.storage_of_gguf", storage=storage)
    stored = stored_dtype(storage, dtype)
    options = {"quantization_config": quantization(storage, dtype)} if storage in QUANTIZED else {}
    if not files.gguf:
        # refuses files that transformers would load wrongly or incompletely without an error
        stored_weights(files.folder)
    quantized = not files.gguf and quantization_of(files.folder) is not None
    mapped = widened_later or not _converts(files, stored, storage)
    try:
        if files.gguf:
            model = gguf_model(files, stored, placement)
        elif quantized:
            with releasing_freed_memory():
                dense = {name: lazily(tensor, stored) for name, tensor in dense_tensors(files.folder).items()}
                model, report = text_model(files, dense, stored, placement, options)
            _check_complete(files.folder, report["missing_keys"])
        elif is_wrapped(files):
            with releasing_freed_memory([] if mapped else weight_files(files.folder)):
                as_stored = widened_later and stored == torch.float32
                model, report = stored_text_model(files, None if as_stored else stored, placement, options)
            _check_complete(files.folder, report["missing_keys"])
        else:
            with releasing_freed_memory([] if mapped else weight_files(files.folder)), no_init_weights():
                model, report = AutoModelForCausalLM.from_pretrained(
                    files.folder,
                    dtype="auto" if widened_later and stored == torch.float32 else stored,
                    device_map=placement,
                    trust_remote_code=False,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    **options,
                )
            _check_complete(files.folder, report["missing_keys"])
    except InputError:
        raise
    except Exception as error:
        raise ModelError("model.weights.cannot_be_loaded", folder=files.folder, reason=first_line(error)) from error
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes would repack its weights, for inference alone
    if getattr(model.config, "tie_word_embeddings", False) and not _shares_head(model):
        model.config.tie_word_embeddings = False  # else PEFT would put the embeddings in the head's place
    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False  # they serve a loss that is never used, and fail with a cache
    model.eval()
    model.requires_grad_(False)
    return model


def _shares_head(model: PreTrainedModel) -> bool:
    """Return whether the output head has the weight of the input embeddings.

    Some configurations say so of models whose files have two, such as that of Mistral Small 3.1; transformers then
    keeps both.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return head is None or getattr(head, "weight", None) is getattr(embeddings, "weight", None)


def _converts(files: ModelFiles, stored: torch.dtype, storage: Storage) -> bool:
    """Return whether the weights are converted from the files, which are then read once instead of mapped."""
    if files.gguf:
        return storage in QUANTIZED
    return storage in QUANTIZED or _stacks(files) or dtype_on_disk(read_config(files)) != stored


def _stacks(files: ModelFiles) -> bool:
    """Return whether the files hold each expert by itself, of which the model makes one parameter."""
    return any(_EXPERT.search(name) for name in stored_weights(files.folder))


def unpacked_whole(files: ModelFiles, stored: torch.dtype) -> bool:
    """Return whether each of a machine's processes holds all weights for a while, though it keeps a part of them."""
    if files.gguf or quantization_of(files.folder) is not None or _stacks(files):
        return True
    return stored != torch.float32 and dtype_on_disk(read_config(files)) != stored  # others are widened part by part


def _check_complete(folder: Path, missing: Collection[str]) -> None:
    """Raise ModelError if weights were missing: transformers draws such weights at random and goes on."""
    if missing:
        raise ModelError("model.weights.lacks_weights", folder=folder, **counted(sorted(missing)))
