"""The parameters of a text model by transformers' names, read one at a time from weights by the names of the files.

Those of experts are read one expert at a time, tensors of a tower are left out (:mod:`weitune.export.source.layout`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from weitune.export.source.base_weights import Weights
from weitune.export.source.layout import Layout, Place


class Parameters:
    """Named parameters that can be read one at a time, in float32."""

    def __init__(self, weights: Weights, layout: Layout) -> None:
        self._weights = weights
        self._places: dict[str, list[Place]] = {}
        self._experts = {parameter.full_name for parameter in layout.experts}
        for place in {id(place): place for place in (layout.places[name] for name in weights.slots)}.values():
            for parameter in place.parameters:
                self._places.setdefault(parameter, []).append(place)
        self.shapes: Mapping[str, tuple[int, ...]] = {name: layout.shapes[name] for name in self._places}
        """In the order of the files."""

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield a parameter along its first dimension: of stacked experts (1, …) for each, every other one whole.

        If the files have the matrices of single experts, no more than these are in memory.
        Do not change a piece in place: it may be mapped from a file.
        """
        for place in sorted(self._places[name], key=lambda place: place.expert or 0):
            parameter = place.to_model([self._weights.read(file, torch.float32) for file in place.files])[name]
            yield from parameter.split(1) if name in self._experts else (parameter,)
