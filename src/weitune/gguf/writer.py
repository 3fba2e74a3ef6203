"""Write a GGUF file one tensor at a time, or a piece of one, so that memory holds no more than that of the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
    """A tensor to write: its shape (rows first), its type, and the function that returns its values.

    They come as arrays whose bytes follow each other in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    read: Callable[[], Iterable[np.ndarray[Any, Any]]]

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
            _write_tensor(writer, plan)
            progress(done, len(plans))
    finally:
        writer.close()


def _write_tensor(writer: GGUFWriter, plan: TensorPlan) -> None:
    """Do what ``GGUFWriter.write_tensor_data`` does, which needs the whole tensor at once."""
    assert writer.fout is not None  # noqa: S101  (the header has been written)
    [file] = writer.fout
    writer.write_padding(file, file.tell())
    written = 0
    for piece in plan.read():
        np.ascontiguousarray(piece).tofile(file)
        written += piece.nbytes
    assert written == plan.bytes, (plan.name, written, plan.bytes)  # noqa: S101  (else every tensor after it moves)
    writer.write_padding(file, written)
