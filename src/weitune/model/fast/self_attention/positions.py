"""What attention needs to know of a packed row: its tree, and the rotary embeddings of its positions."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weitune.model.fast.tree import Tree

Rotary = Any
"""What a model's module of rotary embeddings returns, usually cosines and sines, each (B, T, R) or (B, T, R/2)."""


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """The positions of B rows of T tokens, as attention needs them."""

    rotary: dict[str | None, Rotary]
    """By the kind of layer; under None where all layers share one. None where there is none"""
    tree: Tree | None = None
    """of a packed row"""

    @classmethod
    def of(cls, decoder: Any, hidden: Tensor, position_ids: Tensor, tree: Tree | None = None) -> Positions:
        """Return what ``decoder`` makes of ``position_ids`` (B, T), in the dtype of ``hidden``.

        Some families have other frequencies for each kind of layer, such as full and sliding attention.
        """
        module = getattr(decoder, "rotary_emb", getattr(decoder, "pos_emb", None))
        if module is None:
            return cls({None: None}, tree)
        if "layer_type" not in inspect.signature(module.forward).parameters:
            return cls({None: module(hidden, position_ids)}, tree)
        kinds: Iterable[str] = dict.fromkeys(decoder.config.layer_types)
        return cls({kind: module(hidden, position_ids, kind) for kind in kinds}, tree)

    @property
    def packed(self) -> Tree:
        """The tree. Raises ValueError if the rows are not one packed row."""
        if self.tree is None:
            raise ValueError(self)
        return self.tree

    def only(self, rows: Tensor) -> Positions:
        """Return the positions of some ``rows`` (U,) of a packed row, which attend to the keys of all."""
        rotary = {kind: of_kind and tuple(each[:, rows] for each in of_kind) for kind, of_kind in self.rotary.items()}
        return Positions(rotary, None if self.tree is None else self.tree.only(rows))

    def rotary_of(self, kind: str | None) -> Rotary:
        return self.rotary[None] if None in self.rotary else self.rotary[kind]


def kind_of(attention: Any) -> str | None:
    """Return the kind of the layer whose attention this is, if its configuration names kinds."""
    kinds = getattr(getattr(attention, "config", None), "layer_types", None)
    index = getattr(attention, "layer_idx", None)
    return kinds[index] if kinds and index is not None else None


def shared_names(kind: str | None) -> tuple[Hashable, Hashable]:
    """Return the names under which a pass carries the keys and the values that layers of this ``kind`` share."""
    return ("keys", kind), ("values", kind)
