"""The GGUF file of a run's base, onto which adapters are loaded: made once and kept in the cache.

A base that is itself a ``.gguf`` file is used as it is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from weitune.errors import InputError, ModelError
from weitune.export.formats.gguf_file import planned_bytes, write_gguf
from weitune.export.source.export_source import ExportSource
from weitune.files.cache import cache_folder, mark_used, shortage
from weitune.files.publish import file_written_aside
from weitune.gguf.types import GgufType
from weitune.messages import say
from weitune.model.load.fingerprint import base_fingerprints, stored_state
from weitune.progress import Stage

_LAYOUT = 2
"""Raised when the same base would be written differently."""


def base_file(source: ExportSource, gguf_type: GgufType, stage: Stage) -> Path:
    """Return the GGUF file of the base of ``source``, writing it if the cache does not have it.

    Raises ModelError if it cannot be written.
    """
    if source.files.gguf:
        return source.files.folder / source.files.gguf
    path = cache_folder() / "gguf" / f"{_fingerprint(source)}-{gguf_type}.gguf"
    if path.is_file():
        mark_used(path)
        return path
    if short := shortage(path.parent, planned_bytes(source, source.base, gguf_type)):
        raise InputError("export.cached_base.too_little_room", **short, gguf_type=gguf_type)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        progress = stage(say("export.cached_base.writing", gguf_type=gguf_type))
        with file_written_aside(path) as partial:
            write_gguf(
                partial, source, source.base, gguf_type, template=source.template_without_system, progress=progress
            )
    except OSError as error:
        raise ModelError("export.cached_base.cannot_be_written", folder=path.parent, reason=error) from error
    return path


def _fingerprint(source: ExportSource) -> str:
    base = [base_fingerprints(source.files), stored_state(source.files)]
    parts = [_LAYOUT, *base, list(source.stop_tokens), source.template_without_system]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
