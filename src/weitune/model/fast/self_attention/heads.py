"""What an attention layer does between its projections: norms of heads, rotary embedding, attention, and gates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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

_Norms = tuple[HeadNorm | None, HeadNorm | None, HeadNorm | None]
_NORMS = ("q_norm", "k_norm", "v_norm"), ("query_layernorm", "key_layernorm", ""), ("q_layernorm", "k_layernorm", "")


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

    def split(self, projected: Sequence[Tensor], rows: int, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return query (B, H, T, D), key and value (B, G, T, D) of B ``rows``, from what was projected.

        That is query (B·T, H·D), key and value (B·T, G·D), or one tensor with all three side by side.
        """
        query, key, value = (x.view(rows, len(x) // rows, -1, self.size) for x in self._parts(projected))
        if self.turn_first:
            query, key = self.rotation(query, key, rotary)
        query, key, value = (norm(x) if norm else x for norm, x in zip(self.norms, (query, key, value), strict=True))
        if not self.turn_first:
            query, key = self.rotation(query, key, rotary)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _parts(self, projected: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.gate == "in the query":
            query = projected[0].view(len(projected[0]), -1, 2 * self.size)[..., : self.size]
            return query.reshape(len(query), -1), *projected[1:3]
        if len(projected) > 1:
            return projected[:3]
        width = self.groups * self.size
        return torch.split(projected[0], [projected[0].shape[1] - 2 * width, width, width], dim=1)

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


def read_heads(attention: Any, inputs: Sequence[str], output: str, seen: Observed) -> Heads | None:
    """Return what the module ``attention`` does between the projections with these names, or None if it is unknown.

    Every combination of known parts that its structure allows is tried against what was ``seen``.
    """
    query, key, value = seen.heads
    if query.shape[-1] != value.shape[-1] or seen.attended is None:
        return None
    plain = Heads(query.shape[-1], key.shape[1], seen.scores, kind_of(attention))
    projected = [seen.outputs[name].flatten(0, 1) for name in inputs]
    for heads in _candidates(attention, plain, projected, query):
        try:
            with torch.no_grad():
                split = heads.split(projected, 1, seen.rotary)
                read = heads.gated(seen.attended.flatten(0, 1).flatten(1), projected)
        except (RuntimeError, TypeError, ValueError):  # sizes do not match
            continue
        pairs = [*zip(split, seen.heads, strict=True), (read, seen.inputs[output].flatten(0, 1))]
        if all(agree(ours, theirs) for ours, theirs in pairs):
            form = written_form(heads.rotation, query.transpose(1, 2), key.transpose(1, 2), seen.rotary)
            return replace(heads, rotation=replace(heads.rotation, written=form))
    return None


def _candidates(attention: Any, plain: Heads, projected: Sequence[Tensor], query: Tensor) -> Iterator[Heads]:
    width = query.shape[1] * plain.size
    gate: Gate = "of its own" if len(projected) in (2, 4) else ""
    if len(projected) > 1 and projected[0].shape[1] == 2 * width:
        gate = "in the query"
    names = next((names for names in _NORMS if hasattr(attention, names[0])), ("", "", ""))
    q, k, v = (read_head_norm(getattr(attention, name, None), plain.size) for name in names)
    norms: _Norms = q, k, v
    orders = (False, True) if any(norms) else (False,)
    for rotation, turn_first in itertools.product(rotations(attention), orders):
        yield replace(plain, norms=norms, rotation=rotation, turn_first=turn_first, gate=gate)
