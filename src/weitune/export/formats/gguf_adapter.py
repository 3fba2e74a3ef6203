"""``gguf-adapter``: the adapter alone, in llama.cpp's LoRA format, for use with a GGUF file of the base.

    blk.0.attn_q.weight.lora_a   A (R, in)      F32
    blk.0.attn_q.weight.lora_b   B (out, R)     F32, rows in llama.cpp's order

llama.cpp scales every product by alpha / R with one alpha for the whole adapter. Where the run's
scale differs (rank stabilisation, alphas of single modules), B is multiplied by the ratio. DoRA is not a low-rank
update, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gguf import GGMLQuantizationType
from weitune.errors import ModelError
from weitune.export.formats.gguf_file import base_family
from weitune.export.source.adapter_weights import LowRankUpdate
from weitune.export.source.export_source import ExportSource
from weitune.gguf.families.family import Family, Part
from weitune.gguf.metadata import real, text
from weitune.gguf.writer import TensorPlan, write_gguf_file
from weitune.progress import Progress


def write_gguf_adapter(path: Path, source: ExportSource, progress: Progress) -> None:
    """Write the adapter of ``source``. Raises ModelError if llama.cpp's format cannot express it."""
    adapter = source.adapter
    family = base_family(source)
    updates = {source.layout.in_model(module): update for module, update in adapter.updates.items()}
    check_expressible(family, updates, dora=adapter.has_magnitudes)
    _ = source.merged  # the shapes of the adapter are checked against the base's
    metadata = {
        "general.type": text("adapter"),
        "general.name": text(source.name),
        "adapter.type": text("lora"),
        "adapter.lora.alpha": real(adapter.alpha),
    }
    plans = [plan for module, update in updates.items() for plan in _pairs(family, module, update, adapter.alpha)]
    write_gguf_file(path, family.name, metadata, plans, progress)


def check_expressible(family: Family, modules: Iterable[str], *, dora: bool) -> None:
    """Raise ModelError if llama.cpp's format cannot express an adapter on ``modules``."""
    if dora:
        raise ModelError("export.gguf_adapter.dora")
    for module in modules:
        _parts(family, module)


def _parts(family: Family, module: str) -> list[Part]:
    parts = family.adapter_parts(module)
    if not parts or parts[0].name in {"token_embd.weight", "output.weight"}:
        raise ModelError("export.gguf_adapter.no_place_for_module", module=module)
    return parts


def _pairs(family: Family, module: str, update: LowRankUpdate, alpha: float) -> Iterator[TensorPlan]:
    folded = update.b * (update.scale * update.rank / alpha)
    for part in _parts(family, module):
        a, b = part.of_adapter(update.a, folded)
        for kind, tensor in (("lora_a", a), ("lora_b", b)):
            values = tensor.contiguous().numpy()
            yield TensorPlan(f"{part.name}.{kind}", tuple(tensor.shape), GGMLQuantizationType.F32, _constant(values))


def _constant(values: np.ndarray[Any, Any]) -> Callable[[], Iterable[np.ndarray[Any, Any]]]:
    return lambda: [values]
