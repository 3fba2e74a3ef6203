"""Write a GGUF file one tensor at a time, so that memory holds a tensor and not the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES

from gguf import GGMLQuantizationType, GGUFWriter
from weitune.gguf.metadata import Metadata
from weitune.progress import Progress


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to write: its shape (rows first), its type, and the function that returns its values."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    read: Callable[[], np.ndarray[Any, Any]]

    @property
    def bytes(self) -> int:
        values, size = GGML_QUANT_SIZES[self.type]
        return int(math.prod(self.shape) // values * size)


def write_gguf_file(
    path: Path, architecture: str, metadata: Metadata, plans: Sequence[TensorPlan], progress: Progress
) -> None:
    """Write a GGUF file. Equal input gives equal bytes."""
    writer = GGUFWriter(path, architecture)
    try:
        for key, field in metadata.items():
            writer.add_key_value(key, field.value, field.type, field.element)
        for plan in plans:
            writer.add_tensor_info(plan.name, plan.shape, np.dtype(np.float32), plan.bytes, raw_dtype=plan.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, plan in enumerate(plans, 1):
            writer.write_tensor_data(np.ascontiguousarray(plan.read()))
            progress(done, len(plans))
    finally:
        writer.close()
