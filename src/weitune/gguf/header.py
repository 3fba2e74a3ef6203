"""The header of a GGUF file: its metadata, and the place of each tensor.

    magic  version  counts  │  key type value …  │  name shape type offset …  │  padding  │  tensors

Versions 2 and 3 in little-endian, as in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is mapped.
The strings of an array (a vocabulary, its merges) are decoded only when asked for, so a header with 150,000 tokens
costs a tenth of a second.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT
from gguf.quants import dequantize
from torch import Tensor

from gguf import GGMLQuantizationType, GGUFValueType
from weitune.errors import ModelError
from weitune.messages import say

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FORMATS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip
_LENGTH = struct.Struct("<Q")
_PIECE_VALUES = 1 << 17
"""Values dequantized at a time: half a MiB of float32 stays in the cache of a core."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of the metadata, on the disk."""

    type: GGUFValueType
    element: GGUFValueType | None
    """The type of an array's elements."""
    count: int
    """Number of elements; 1 if it is not an array."""
    content: memoryview

    @property
    def value(self) -> Any:
        kind = self.type if self.element is None else self.element
        if kind == GGUFValueType.STRING:
            values = list(_strings(self.content, self.count))
        else:
            values = list(struct.unpack_from(f"<{self.count}{_FORMATS[kind]}", self.content))
        return values[0] if self.element is None else values


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the file stores it."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as PyTorch has it."""
    type: GGMLQuantizationType
    content: memoryview

    def read(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the tensor, dequantized piece by piece into ``dtype``: only one piece at a time exists in float32.

        Raises NotImplementedError for a type that gguf cannot dequantize.
        """
        values, size = GGML_QUANT_SIZES[self.type]
        blocks = np.frombuffer(self.content, np.uint8).reshape(-1, size)
        tensor = torch.empty(self.shape, dtype=dtype)
        flat = tensor.view(-1)
        step = max(_PIECE_VALUES // values, 1)
        for start in range(0, len(blocks), step):
            piece = dequantize(blocks[start : start + step].reshape(1, -1), self.type)
            writable = np.require(piece.reshape(-1), requirements="W")
            flat[start * values : (start + step) * values] = torch.from_numpy(writable)
        return tensor

    def pieces(self) -> Iterator[Tensor]:
        """Yield the tensor in float32: stacked matrices (E, …) as (1, …) for each, every other one whole."""
        if len(self.shape) < 3:
            yield self.read()
            return
        size = len(self.content) // self.shape[0]
        for start in range(0, len(self.content), size):
            yield replace(self, shape=(1, *self.shape[1:]), content=self.content[start : start + size]).read()


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The metadata of a GGUF file, and its tensors."""

    metadata: Mapping[str, Entry]
    tensors: Mapping[str, StoredTensor]
    """By name, in the order of the file."""

    @property
    def architecture(self) -> str:
        """The family of the model in llama.cpp's terms; empty if the file does not name it."""
        return str(self.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata[key].value if key in self.metadata else default


def read_header(path: Path) -> GgufHeader:
    """Read the header of ``path`` and map the file. Raises ModelError if it is not a complete GGUF file."""
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        header = _parse(content)
        parts = int(header.get("split.count", 1))
    except OSError as error:
        raise ModelError("gguf.header.cannot_be_read", path=path, reason=error.strerror or error) from error
    except (ValueError, KeyError, TypeError, ArithmeticError, struct.error) as error:
        raise ModelError("gguf.header.not_a_gguf_file", path=path, reason=error) from error
    if parts > 1:
        raise ModelError("gguf.header.split_file", path=path, parts=parts)
    return header


def _parse(content: memoryview) -> GgufHeader:
    if content[:4] != _MAGIC:
        raise ValueError(say("gguf.header.wrong_magic"))
    version, tensor_count, entry_count = struct.unpack_from("<IQQ", content, 4)
    if version not in _VERSIONS:
        raise ValueError(say("gguf.header.wrong_version", version=version, versions=_VERSIONS))
    position = 24
    metadata = {}
    for _ in range(entry_count):
        key, position = _string(content, position)
        metadata[key], position = _entry(content, position)
    entries = []
    for _ in range(tensor_count):
        name, position = _string(content, position)
        (dimensions,) = struct.unpack_from("<I", content, position)
        *sides, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", content, position + 4)
        position += 16 + 8 * dimensions
        entries.append((name, tuple(reversed(sides)), GGMLQuantizationType(kind), offset))
    alignment = metadata["general.alignment"].value if "general.alignment" in metadata else GGUF_DEFAULT_ALIGNMENT
    start = -(-position // alignment) * alignment
    tensors = {name: _tensor(content, name, shape, kind, start + offset) for name, shape, kind, offset in entries}
    return GgufHeader(metadata, tensors)


def _tensor(
    content: memoryview, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, start: int
) -> StoredTensor:
    values, size = GGML_QUANT_SIZES[kind]
    end = start + prod(shape) // values * size
    if end > len(content):
        raise ValueError(say("gguf.header.ends_within_tensor", tensor=name))
    return StoredTensor(name, shape, kind, content[start:end])


def _entry(content: memoryview, position: int) -> tuple[Entry, int]:
    """Return the entry whose type is at ``position``, and the position of the next one."""
    kind = GGUFValueType(struct.unpack_from("<I", content, position)[0])
    element, count, start = None, 1, position + 4
    if kind == GGUFValueType.ARRAY:
        number, count = struct.unpack_from("<IQ", content, start)
        element, start = GGUFValueType(number), start + 12
    end = start
    single = kind if element is None else element
    if single == GGUFValueType.STRING:
        for _ in range(count):
            end += 8 + _LENGTH.unpack_from(content, end)[0]
    else:
        end += count * struct.calcsize(f"<{_FORMATS[single]}")
    if end > len(content):
        raise ValueError(say("gguf.header.ends_within_metadata"))
    return Entry(kind, element, count, content[start:end]), end


def _strings(content: memoryview, count: int) -> Iterator[str]:
    position = 0
    for _ in range(count):
        text, position = _string(content, position)
        yield text


def _string(content: memoryview, position: int) -> tuple[str, int]:
    start = position + 8
    end = start + _LENGTH.unpack_from(content, position)[0]
    return str(content[start:end], "utf-8"), end
