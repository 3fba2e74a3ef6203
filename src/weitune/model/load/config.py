"""A model's configuration, and the tokens at which it ends an answer by itself, besides those of the chat template.

transformers takes these from generation_config.json, and from config.json where that names none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weitune.errors import InputError, ModelError, first_line
from weitune.model.load.locate import ModelFiles
from weitune.model.load.weight_files import read_model_json

if TYPE_CHECKING:
    import torch

GENERATION_CONFIG = "generation_config.json"


def read_config(files: ModelFiles) -> Any:
    """Return the configuration of the text model in ``files``, also of one with a vision tower or another wrapper.

    Raises ModelError if it cannot be read.
    """
    whole = read_whole_config(files)
    if whole.get_text_config() is whole:
        return whole
    from weitune.model.load.text_model import text_config

    return text_config(whole)


def read_whole_config(files: ModelFiles) -> Any:
    """Return the configuration of a model, with its towers if it has any.

    Quantization that is undone while the weights are read is left out. Raises ModelError if it cannot be read.
    """
    from transformers import AutoConfig

    from weitune.model.load.published import is_dequantized

    try:
        if files.gguf:
            from weitune.model.load.gguf_model import gguf_config

            return gguf_config(files)
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        for part in (config, config.get_text_config()):
            if hasattr(part, "quantization_config") and is_dequantized(files.folder):
                del part.quantization_config
        return config
    except InputError:
        raise
    except Exception as error:
        raise ModelError("model.config.cannot_be_read", folder=files.folder, reason=first_line(error)) from error


def dtype_on_disk(config: Any) -> torch.dtype | None:
    """Return the number format of the weights' files, if ``config`` names it."""
    import torch

    dtype = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype


def loaded_stop_tokens(model: Any) -> tuple[int, ...]:
    """Return the stop tokens of a loaded transformers ``model``."""
    return _as_tuple(model.generation_config.eos_token_id)


def stored_stop_tokens(files: ModelFiles, config: Any) -> tuple[int, ...]:
    """Return the stop tokens of a model that is not loaded; ``config`` is its transformers configuration.

    A configuration that wraps a text model has them at its top or in the text model's part; transformers looks for them
    in this order. Raises ModelError if the generation config is broken.
    """
    stop_tokens = read_generation_config(files).get("eos_token_id")
    for part in (config, config.get_text_config()):
        stop_tokens = getattr(part, "eos_token_id", None) if stop_tokens is None else stop_tokens
    return _as_tuple(stop_tokens)


def read_generation_config(files: ModelFiles) -> dict[str, Any]:
    """Return a model's generation config, empty if it has none. Raises ModelError if it is broken."""
    path = files.folder / GENERATION_CONFIG
    return {} if files.gguf or not path.is_file() else read_model_json(path)


def _as_tuple(eos_token_id: int | list[int] | None) -> tuple[int, ...]:
    return (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id or ())
