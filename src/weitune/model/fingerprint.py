"""Tell whether a model or a tokenizer is still the one a run began with, without reading gigabytes.

A weight file counts by its size and its first and last MiB (in safetensors and GGUF the first holds every tensor's
name, type and place); small files count whole.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from weitune.model.locate import ModelFiles

_EDGE_BYTES = 1 << 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def model_fingerprint(files: ModelFiles) -> str:
    """Return the SHA-256 over a model's configuration and the edges of its weight files."""
    weights = [files.folder / files.gguf] if files.gguf else sorted(files.folder.glob("*.safetensors"))
    return _digest([*weights, files.folder / "config.json"] if not files.gguf else weights)


def tokenizer_fingerprint(files: ModelFiles) -> str:
    """Return the SHA-256 over a model's tokenizer files; a GGUF file holds its tokenizer at its beginning."""
    if files.gguf:
        return _digest([files.folder / files.gguf])
    return _digest([files.folder / name for name in _TOKENIZER_FILES])


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            if size > 2 * _EDGE_BYTES:
                file.seek(-_EDGE_BYTES, 2)
            digest.update(file.read())
    return digest.hexdigest()
