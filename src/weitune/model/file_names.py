"""Names of the two files, configuration and tensors, that an adapter or a whole model has, and of their folder."""

from __future__ import annotations

from pathlib import Path

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""As PEFT writes and reads them."""
MODEL_FILES = ("config.json", "model.safetensors")
"""As transformers does: a whole model was trained."""
ADAPTER_FOLDER = "adapter"
"""The folder in a run's folder that has one or the other once training is done."""


def holds_adapter(folder: Path) -> bool:
    """Return whether ``folder`` has an adapter."""
    return all((folder / name).is_file() for name in ADAPTER_FILES)


def holds_model(folder: Path) -> bool:
    """Return whether ``folder`` has the weights of a whole model."""
    return all((folder / name).is_file() for name in MODEL_FILES)
