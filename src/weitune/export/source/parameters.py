"""The parameters of a text model by transformers' names, read one at a time from weights by the names of the files.

The matrices of single experts are stacked, tensors of a tower are left out (:mod:`weitune.export.source.layout`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weitune.export.source.base_weights import Weights
from weitune.export.source.layout import Layout, Place


class Parameters:
    """Named parameters that can be read one at a time, in float32."""

    def __init__(self, weights: Weights, layout: Layout) -> None:
        self._weights = weights
        self._places: dict[str, list[Place]] = {}
        for place in {id(place): place for place in (layout.places[name] for name in weights.slots)}.values():
            for parameter in place.parameters:
                self._places.setdefault(parameter, []).append(place)
        self.shapes: Mapping[str, tuple[int, ...]] = {name: layout.shapes[name] for name in self._places}
        """In the order of the files."""

    def read(self, name: str) -> Tensor:
        """Return a parameter. Do not change it in place: it may be mapped from a file."""
        first, *others = self._places[name]
        if not others and first.expert is None:
            return self._of(first)[name]
        stacked = torch.empty(self.shapes[name])
        for place in (first, *others):
            assert place.expert is not None  # noqa: S101  (only experts have several places)
            stacked[place.expert] = self._of(place)[name][0]
        return stacked

    def _of(self, place: Place) -> dict[str, Tensor]:
        return place.to_model([self._weights.read(name, torch.float32) for name in place.files])
