"""Load a chat model and its tokenizer: number format and device from what is asked and what is there.

Only safetensors and GGUF weights are read, and no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weitune.errors import InputError, ModelError, first_line
from weitune.model.load.config import dtype_on_disk, read_config
from weitune.model.load.gguf_model import gguf_model, gguf_tokenizer
from weitune.model.load.locate import ModelFiles, locate
from weitune.model.load.weight_files import stored_weights, weight_files
from weitune.model.storage.allocator import giving_back
from weitune.model.storage.shard import shard
from weitune.model.storage.weight_storage import quantization
from weitune.recipe.schema import QUANTIZED, Storage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model with its tokenizer, and where both came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    files: ModelFiles
    device: torch.device
    dtype: torch.dtype
    """What it is computed in."""
    storage: Storage = "auto"
    """How its weights lie in memory."""
    shards: int = 1
    """Among how many processes its matrices are divided (``train.shard``)."""

    @property
    def split_over_devices(self) -> bool:
        """Whether the layers lie on more than one device (``device_map``)."""
        return len(set(getattr(self.model, "hf_device_map", {}).values())) > 1


def choose_device(device: str | None = None) -> torch.device:
    """Return the accelerator of this process, or the CPU; ``device`` overrides.

    Under a launcher each process gets the accelerator of its local rank.
    """
    if device is not None:
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ModelError("model.load.device_cannot_used", device=device, error=first_line(error)) from None
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    import os

    kind = torch.accelerator.current_accelerator()
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device(kind.type if kind else "cpu", rank % max(torch.accelerator.device_count(), 1))


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of the base model: ``auto`` is bfloat16 where ``device`` computes in it natively."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    match device.type:
        case "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        case "xpu":
            native = True
        case "cpu":
            native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        case _:
            native = False
    return torch.bfloat16 if native else torch.float32


def stored_dtype(storage: Storage, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of the weights that ``storage`` does not round, for a model computed in ``dtype``."""
    return {"auto": dtype, "fp32": torch.float32}.get(storage, torch.bfloat16)


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model. Raises ModelError if there is none, or if it has no Rust implementation."""
    from transformers import AutoTokenizer

    folder = files.tokenizer_folder
    try:
        if files.gguf and folder == files.folder:
            tokenizer = gguf_tokenizer(files)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if files.template is not None:
            tokenizer.chat_template = files.template
    except InputError:
        raise
    except Exception as error:
        raise ModelError("model.load.tokenizer_cannot_loaded", folder=folder, error=first_line(error)) from error
    if not tokenizer.is_fast:
        raise ModelError("model.load.model_has_only_slow", folder=folder)
    return tokenizer


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
    device: str | None = None,
    shards: int = 1,
) -> LoadedModel:
    """Load the weights of a model whose tokenizer is here already.

    With several accelerators and no launcher, the layers are spread over them (``device_map="auto"``). With ``shards``,
    each of so many processes that have found each other keeps a part (:mod:`.shard`). Raises ModelError if they cannot
    be loaded.
    """
    target = choose_device(device)
    dtype = choose_dtype(precision, target)
    if shards == 1:
        model = _load(files, dtype, storage, _placement(target, device))
    else:
        model = _load(files, dtype, storage, {"": "cpu"}, widened_later=True)
        shard(model, target, stored_dtype(storage, dtype))
    return LoadedModel(model, tokenizer, files, target, dtype, storage, shards)


def _placement(target: torch.device, asked: str | None) -> Any:
    """Return the ``device_map``: one device, or ``auto`` when this one process owns several accelerators."""
    import os

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if asked is None and alone and target.type == "cuda" and torch.cuda.device_count() > 1:
        return "auto"
    return {"": target}


def _load(
    files: ModelFiles, dtype: torch.dtype, storage: Storage, placement: Any, *, widened_later: bool = False
) -> PreTrainedModel:
    """Load the weights; those that are ``widened_later`` to float32 are left as they are mapped from the file."""
    from transformers import AutoModelForCausalLM

    if storage in QUANTIZED and files.gguf:
        raise ModelError("model.load.train_storage_weights_gguf", storage=storage)
    stored = stored_dtype(storage, dtype)
    options = {"quantization_config": quantization(storage, dtype)} if storage in QUANTIZED else {}
    if not files.gguf:
        stored_weights(files.folder)  # refuses what transformers would load in silence, or in part
    read_once = [] if widened_later or not _converts(files, stored, storage) else weight_files(files.folder)
    try:
        if files.gguf:
            model = gguf_model(files, stored, placement)
        else:
            with giving_back(read_once):
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
        raise ModelError("model.load.model_cannot_loaded", folder=files.folder, error=first_line(error)) from error
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes would repack its weights, for inference alone
    model.eval()
    model.requires_grad_(False)
    return model


def _converts(files: ModelFiles, stored: torch.dtype, storage: Storage) -> bool:
    """Whether the weights are made from what the files hold, which is then read once, and not mapped as it is."""
    return storage in QUANTIZED or (not files.gguf and dtype_on_disk(read_config(files)) != stored)


def _check_complete(folder: Path, missing: Collection[str]) -> None:
    """Raise ModelError if weights were missing: transformers draws such weights at random and goes on."""
    if missing:
        names = sorted(missing)
        raise ModelError(
            "model.load.model_lacks_weights_architecture",
            folder=folder,
            names_count=len(names),
            names=", ".join(names[:3]),
            detail=", …" if len(names) > 3 else "",
        )
