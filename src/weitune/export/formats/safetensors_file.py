"""Write safetensors one tensor at a time, so that memory holds a tensor and not a shard.

A file consists of 8 bytes with the length of the header, the header (JSON with every tensor's format, shape and
offsets), and the tensors. The header is known before the first tensor is computed. Equal weights give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weitune.export.source.base_weights import DTYPES, Slot

SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def shards(slots: Mapping[str, Slot], limit_bytes: int = SHARD_BYTES) -> list[dict[str, Slot]]:
    """Split tensors, in order, into shards of at most ``limit_bytes``; a larger tensor gets a shard of its own."""
    parts: list[dict[str, Slot]] = []
    filled = 0
    for name, slot in slots.items():
        size = slot_bytes(slot)
        if not parts or filled + size > limit_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = slot
        filled += size
    return parts


def shard_names(count: int) -> list[str]:
    """Return the names of ``count`` shards, as transformers expects them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def write_safetensors(path: Path, slots: Mapping[str, Slot], tensors: Iterable[Tensor]) -> None:
    """Write ``tensors``, which come in the order of ``slots``, one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, slot in slots.items():
        start, end = end, end + slot_bytes(slot)
        header[name] = {"dtype": _NAMES[slot.dtype], "shape": list(slot.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for slot, tensor in zip(slots.values(), tensors, strict=True):
            for block in _blocks(tensor.to(slot.dtype)):
                block.tofile(file)


def slot_bytes(slot: Slot) -> int:
    """Return how many bytes a tensor takes."""
    return slot.dtype.itemsize * torch.Size(slot.shape).numel()


def _blocks(tensor: Tensor, values: int = 1 << 24) -> Iterator[np.ndarray[Any, Any]]:
    flat = tensor.contiguous().reshape(-1)
    for start in range(0, flat.numel(), values):
        yield flat[start : start + values].view(torch.uint8).numpy()
