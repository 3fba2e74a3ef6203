"""Names of the two files that hold a trained adapter or model, its configuration and its tensors, and their folder."""

from __future__ import annotations

from pathlib import Path

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""As PEFT writes and reads them."""
MODEL_FILES = ("config.json", "model.safetensors")
"""As transformers writes and reads them, if all weights were trained."""
ADAPTER_FOLDER = "adapter"
"""The folder in a run's folder that holds either of them once training is done."""


def holds_adapter(folder: Path) -> bool:
    """Return whether ``folder`` has both files of an adapter."""
    return all((folder / name).is_file() for name in ADAPTER_FILES)


def holds_model(folder: Path) -> bool:
    """Return whether ``folder`` has both files of a model."""
    return all((folder / name).is_file() for name in MODEL_FILES)
