"""A model's transformers configuration."""

from __future__ import annotations

from typing import Any

import torch

from weitune.errors import InputError, ModelError, first_line
from weitune.model.load.locate import ModelFiles


def read_config(files: ModelFiles) -> Any:
    """Return the configuration of a model. Raises ModelError if it cannot be read."""
    from transformers import AutoConfig

    try:
        if files.gguf:
            from weitune.model.load.gguf_model import gguf_config

            return gguf_config(files)
        return AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:
        raise ModelError("model.config.cannot_be_read", folder=files.folder, reason=first_line(error)) from error


def dtype_on_disk(config: Any) -> torch.dtype | None:
    """Return the number format of the weights' files, if ``config`` names it."""
    dtype = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
