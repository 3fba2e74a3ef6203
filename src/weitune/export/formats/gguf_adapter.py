"""``gguf-adapter``: the adapter alone, in llama.cpp's LoRA format, for use with a GGUF file of the base.

    blk.0.attn_q.weight.lora_a   A (R, in)      F32
    blk.0.attn_q.weight.lora_b   B (out, R)     F32, rows in llama.cpp's order

llama.cpp scales every product by alpha / R with one alpha for the whole adapter. Where the run's
scale differs (rank stabilisation, alphas of single modules), B is multiplied by the ratio. DoRA is not a low-rank
update, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gguf import GGMLQuantizationType
from weitune.errors import ModelError
from weitune.export.formats.gguf_file import base_architecture
from weitune.export.source.adapter_weights import LowRankUpdate
from weitune.export.source.export_source import ExportSource
from weitune.gguf.architecture import Architecture
from weitune.gguf.metadata import real, text
from weitune.gguf.writer import TensorPlan, write_gguf_file
from weitune.progress import Progress


def write_gguf_adapter(path: Path, source: ExportSource, progress: Progress) -> None:
    """Write the adapter of ``source``. Raises ModelError if llama.cpp's format cannot express it."""
    adapter = source.adapter
    architecture = base_architecture(source)
    check_expressible(architecture, adapter.updates, dora=adapter.has_magnitudes)
    _ = source.merged  # the shapes of the adapter are checked against the base's
    metadata = {
        "general.type": text("adapter"),
        "general.name": text(source.name),
        "adapter.type": text("lora"),
        "adapter.lora.alpha": real(adapter.alpha),
    }
    plans = [
        plan
        for module, update in adapter.updates.items()
        for plan in _pair(architecture, module, update, adapter.alpha)
    ]
    write_gguf_file(path, architecture.name, metadata, plans, progress)


def check_expressible(architecture: Architecture, modules: Iterable[str], *, dora: bool) -> None:
    """Raise ModelError if llama.cpp's format cannot express an adapter on ``modules``."""
    if dora:
        raise ModelError("export.gguf_adapter.dora")
    for module in modules:
        _stem(architecture, module)


def _stem(architecture: Architecture, module: str) -> str:
    stem = architecture.gguf_name(module)
    if stem is None or stem in {"token_embd", "output"}:
        raise ModelError("export.gguf_adapter.no_place_for_module", module=module)
    return stem


def _pair(architecture: Architecture, module: str, update: LowRankUpdate, alpha: float) -> list[TensorPlan]:
    stem = _stem(architecture, module)
    folded = update.b * (update.scale * update.rank / alpha)
    parts = {"lora_a": update.a, "lora_b": architecture.to_gguf(module, folded)}
    return [
        TensorPlan(f"{stem}.weight.{part}", tuple(tensor.shape), GGMLQuantizationType.F32, _constant(tensor.numpy()))
        for part, tensor in parts.items()
    ]


def _constant(values: np.ndarray[Any, Any]) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: values
