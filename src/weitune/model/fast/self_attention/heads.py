"""What an attention layer does between its projections: norms of heads, rotary embedding, attention, and gates."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from weitune.model.fast.attention import KERNELS, attention_for
from weitune.model.fast.kernels.scores import Scores
from weitune.model.fast.self_attention.head_norm import HeadNorm, read_head_norm
from weitune.model.fast.self_attention.observe import Observed, agree
from weitune.model.fast.self_attention.positions import Positions, Rotary, kind_of
from weitune.model.fast.self_attention.rotary import UNTURNED, ModelRotation, rotations, written_form

Gate = Literal["", "in the query", "of its own"]
"""Whether what attention reads is multiplied by the sigmoid of a gate, and where that is projected: as the second half
of each query head, or by a projection after those of query, key and value."""

Keys = Literal["own", "values too", "given"]
"""Whether a layer projects keys and values, or keys that before their norm are its values too, or is given both by an
earlier layer."""

_Norms = tuple[HeadNorm | None, HeadNorm | None, HeadNorm | None]
_NORMS = ("q_norm", "k_norm", "v_norm"), ("query_layernorm", "key_layernorm", ""), ("q_layernorm", "k_layernorm", "")
GATES = "gate_proj", "g_proj"
"""The names of projections of a gate."""


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """The attention of one layer: H query heads and G key and value heads of size D."""

    size: int
    """D"""
    groups: int
    """G"""
    scores: Scores
    kind: str | None
    """of the layer, for which the model has rotary embeddings"""
    norms: _Norms = (None, None, None)
    """of query, key and value"""
    rotation: ModelRotation = UNTURNED
    turn_first: bool = False
    """whether norms come after the rotary embedding"""
    gate: Gate = ""
    keys: Keys = "own"
    sinks: str | None = None
    """the name of the sinks in the module"""

    def split(self, projected: Sequence[Tensor], rows: int, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return query (B, H, T, D), key and value (B, G, T, D) of B ``rows``, from what was projected.

        That is query (B·T, H·D), key and value (B·T, G·D), or one tensor with all three side by side. Keys and values
        that are given follow the query as heads.
        """
        if self.keys == "given":
            query, key, value = projected
            return self._one(query, rows, self.norms[0], rotary), key, value
        query, key, value = (x.view(rows, len(x) // rows, -1, self.size) for x in self._parts(projected))
        if self.turn_first:
            query, key = self.rotation(query, key, rotary)
        query, key, value = (norm(x) if norm else x for norm, x in zip(self.norms, (query, key, value), strict=True))
        if not self.turn_first:
            query, key = self.rotation(query, key, rotary)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def split_keys(self, projected: Sequence[Tensor], rows: int, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Return key and value (B, G, T, D) alone, from what was projected for them."""
        _, of_key, of_value = self.norms
        value = projected[-1].view(rows, len(projected[-1]) // rows, -1, self.size)
        value = of_value(value) if of_value else value
        return self._one(projected[0], rows, of_key, rotary), value.transpose(1, 2)

    def _one(self, projected: Tensor, rows: int, norm: HeadNorm | None, rotary: Rotary) -> Tensor:
        """Return queries or keys alone."""
        heads = projected.view(rows, len(projected) // rows, -1, self.size)
        heads = self.rotation.turn_one(heads, rotary) if self.turn_first else heads
        heads = norm(heads) if norm else heads
        return (heads if self.turn_first else self.rotation.turn_one(heads, rotary)).transpose(1, 2)

    def _parts(self, projected: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.gate == "in the query":
            query = projected[0].view(len(projected[0]), -1, 2 * self.size)[..., : self.size]
            return query.reshape(len(query), -1), *projected[1:3]
        parts = projected[:-1] if self.gate == "of its own" else projected
        if self.keys == "values too":
            query, key = parts
            return query, key, key
        if len(parts) > 1:
            return parts
        width = self.groups * self.size
        return torch.split(parts[0], [parts[0].shape[1] - 2 * width, width, width], dim=1)

    def gated(self, attended: Tensor, projected: Sequence[Tensor]) -> Tensor:
        """Return what the output projection reads, from what attention read, (T, H·D)."""
        if not self.gate:
            return attended
        if self.gate == "of its own":
            gate = projected[-1]
        else:
            gate = projected[0].view(len(attended), -1, 2 * self.size)[..., self.size :].reshape(attended.shape)
        by_head = attended.view(len(attended), gate.shape[1], -1)  # a gate may be one number for each head
        return (by_head * torch.sigmoid(gate).unsqueeze(-1)).view(attended.shape)

    def __call__(self, projected: Sequence[Tensor], positions: Positions) -> Tensor:
        """Return what the output projection reads, (T, H·D), in a packed row. Differentiable by autograd."""
        query, key, value = self.split(projected, 1, positions.rotary_of(self.kind))
        out = KERNELS[attention_for(query.device)](query, key, value, positions.tree, self.scores)
        return self.gated(out.reshape(out.shape[1], -1), projected)

    def of(self, attention: Any) -> Heads:
        """Return the same for another module ``attention`` with the same settings."""
        sinks = self.scores.sinks if self.sinks is None else getattr(attention, self.sinks)
        return replace(self, norms=_norms(attention, self.size), scores=replace(self.scores, sinks=sinks))


def read_heads(attention: Any, inputs: Sequence[str], output: str, seen: Observed) -> Heads | None:
    """Return what the module ``attention`` does between the projections with these names, or None if it is unknown.

    Every combination of known parts that its structure allows is tried against what was ``seen``.
    """
    query, key, value = seen.heads
    if query.shape[-1] != value.shape[-1] or seen.attended is None:
        return None
    sinks = next((name for name, each in attention.named_parameters(recurse=False) if each is seen.scores.sinks), None)
    if seen.scores.sinks is not None and sinks is None:
        return None
    kind, keys = kind_of(attention), _keys(inputs, seen)
    plain = Heads(query.shape[-1], key.shape[1], seen.scores, kind, keys=keys, sinks=sinks)
    projected = [seen.outputs[name].flatten(0, 1) for name in inputs]
    if plain.keys == "given":
        projected += [key, value]
    turns = [UNTURNED] if seen.rotary is None else rotations(attention)
    for heads in _candidates(attention, plain, inputs, projected[0].shape[1] // query.shape[1], turns):
        try:
            with torch.no_grad():
                split = heads.split(projected, 1, seen.rotary)
                read = heads.gated(seen.attended.flatten(0, 1).flatten(1), projected)
        except (RuntimeError, TypeError, ValueError):  # sizes do not match
            continue
        factor = _factor(split[1], key)
        split = split[0], split[1] * factor, split[2]
        pairs = [*zip(split, seen.heads, strict=True), (read, seen.inputs[output].flatten(0, 1))]
        if all(agree(ours, theirs) for ours, theirs in pairs):
            scores = seen.scores if factor == 1 else seen.scores.times(factor, plain.size)
            form = written_form(heads.rotation, query.transpose(1, 2), key.transpose(1, 2), seen.rotary)
            return replace(heads, scores=scores, rotation=replace(heads.rotation, written=form))
    return None


def _factor(ours: Tensor, theirs: Tensor) -> float:
    """Return what ``ours`` has to be multiplied by to be nearest to ``theirs``; 1 if they agree. Scores can have it."""
    if ours.shape != theirs.shape or agree(ours, theirs):
        return 1.0
    return float((ours * theirs).double().sum() / ours.double().square().sum())


def _keys(inputs: Sequence[str], seen: Observed) -> Keys:
    if seen.keys_given:
        return "given"
    return "values too" if "k_proj" in inputs and "v_proj" not in inputs else "own"


def _candidates(
    attention: Any, plain: Heads, inputs: Sequence[str], query_width: int, turns: Iterable[ModelRotation]
) -> Iterator[Heads]:
    """Yield what may be; the first projection has ``query_width`` outputs for each query head."""
    gate: Gate = "of its own" if inputs[-1] in GATES else ""
    if "q_proj" in inputs and query_width == 2 * plain.size:
        gate = "in the query"
    norms = _norms(attention, plain.size)
    orders = (False, True) if any(norms) else (False,)
    for rotation, turn_first in itertools.product(turns, orders):
        yield replace(plain, norms=norms, rotation=rotation, turn_first=turn_first, gate=gate)


def _norms(attention: Any, size: int) -> _Norms:
    names = next((names for names in _NORMS if hasattr(attention, names[0])), ("", "", ""))
    query, key, value = (read_head_norm(getattr(attention, name, None), size) for name in names)
    return query, key, value
