"""A base model's weights, read one tensor at a time under the names that transformers gives them.

:class:`SafetensorsWeights` reads a model folder, and dequantizes one that was published quantized; :class:`GgufWeights`
a ``.gguf`` file, dequantized to float32, renamed and with transformers' row order of attention
(:mod:`weitune.gguf.architecture`); :class:`MergedWeights` adds an adapter to either of them. Reading takes the memory
of one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from weitune.errors import ModelError, RunError
from weitune.export.source.adapter_weights import AdapterWeights, applied
from weitune.gguf.architecture import Architecture, known_architecture, stored_parameters, tensors_that_are_run
from weitune.gguf.families.find import family_of
from weitune.gguf.header import GgufHeader, read_header
from weitune.model.load.config import read_config
from weitune.model.load.locate import ModelFiles
from weitune.model.load.published import dense_tensors
from weitune.model.load.weight_files import counted

if TYPE_CHECKING:
    from weitune.export.source.layout import Layout, Place

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""By the names that safetensors has for them. Whole numbers are counters and tables, which are copied."""


class Slot(NamedTuple):
    """Number format and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Weights(Protocol):
    """Named tensors that can be read one at a time."""

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Every tensor's format and shape, in the order of the files."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor in ``dtype`` (default: its own). Do not change it in place: it may be mapped from a file."""


def open_weights(files: ModelFiles) -> Weights:
    """Return the weights of a model on this disk. Raises ModelError if they cannot be read tensor by tensor."""
    if files.gguf:
        header = read_header(files.path)
        return GgufWeights(header, known_architecture(header) or Architecture(family_of(read_config(files))))
    return SafetensorsWeights(files.folder)


class SafetensorsWeights:
    """The ``*.safetensors`` of a model folder; those of a model that was published quantized are dequantized."""

    def __init__(self, folder: Path) -> None:
        """Read the headers. Raises ModelError if there are none, or if the weights cannot be dequantized."""
        self._folder = folder
        self._tensors = dense_tensors(folder)

    @cached_property
    def slots(self) -> Mapping[str, Slot]:
        return {
            name: Slot(_float(self._folder, name, tensor.dtype), tensor.shape) for name, tensor in self._tensors.items()
        }

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self._tensors[name].read(dtype)


class GgufWeights:
    """The tensors of a ``.gguf`` file as transformers knows them, in float32."""

    def __init__(self, header: GgufHeader, architecture: Architecture) -> None:
        self.architecture, self._header = architecture, header
        self.tensors = list(header.tensors.values())
        """As they are stored, in the order of the file."""
        self._known = stored_parameters(architecture, header)

    @cached_property
    def slots(self) -> Mapping[str, Slot]:
        return {
            name: Slot(torch.float32, self.architecture.shape_of(name, *(tensor.shape for tensor in tensors)))
            for name, tensors in self._known.items()
        }

    @property
    def left_out(self) -> list[str]:
        """The names in the file of weights that are run and not among the :attr:`slots`."""
        known = {tensor.name for tensors in self._known.values() for tensor in tensors}
        return [name for name in tensors_that_are_run(self._header) if name not in known]

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        tensors = [tensor.read(torch.float32) for tensor in self._known[name]]
        read = self.architecture.to_huggingface(name, *tensors)  # in float32: it may add and take logarithms
        return read if dtype is None else read.to(dtype)


class MergedWeights:
    """The weights of a base with an adapter added in float32, rounded once to the base's format."""

    def __init__(self, base: Weights, adapter: AdapterWeights, layout: Layout) -> None:
        """Raises RunError if the adapter changes weights that the base's files do not have, or lacks some layers'."""
        self.base = base
        self.updates = adapter.by_parameter(layout.experts, layout.in_model)
        self._places = layout.places
        self._last: tuple[Place | None, dict[str, Tensor]] = (None, {})
        parameters = dict.fromkeys(name for place in self._places.values() for name in place.parameters)
        if missing := [name for name in self.updates if name not in parameters]:
            raise RunError("export.base_weights.weights_not_in_base", folder=adapter.folder, **counted(missing))
        if incomplete := adapter.missing(self.updates, parameters):
            raise RunError("export.base_weights.incomplete_adapter", folder=adapter.folder, **counted(incomplete))

    @property
    def slots(self) -> Mapping[str, Slot]:
        return self.base.slots

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        place = self._places[name]
        if not any(parameter in self.updates for parameter in place.parameters):
            return self.base.read(name, dtype)
        merged = self._merged(place) if len(place.files) == 1 else self._remembered(place)
        return merged[name].to(dtype or self.slots[name].dtype)

    def _remembered(self, place: Place) -> dict[str, Tensor]:
        """Return :meth:`_merged` of ``place``, whose tensors are mostly asked for one after the other."""
        if self._last[0] is not place:
            self._last = (None, {})  # before the next ones are read
            self._last = (place, self._merged(place))
        return self._last[1]

    def _merged(self, place: Place) -> dict[str, Tensor]:
        parameters = place.to_model([self.base.read(name, torch.float32) for name in place.files])  # rounded only once
        merged = {
            name: applied(self.updates[name], tensor, place.expert) if name in self.updates else tensor
            for name, tensor in parameters.items()
        }
        return place.to_files(merged)


def _float(folder: Path, weight: str, dtype: torch.dtype) -> torch.dtype:
    if dtype not in DTYPES.values():
        kind = str(dtype).removeprefix("torch.")
        raise ModelError("export.base_weights.unknown_number_format", weight=weight, folder=folder, dtype=kind)
    return dtype
