"""Rotary embeddings (Su et al., arXiv 2104.09864) of a few tokens, from a table of all positions.

Most families turn pairs of a head's two halves: (a, b) to (a cos - b sin, b cos + a sin). For these, query and key are
turned together by three operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weitune.model.fast.self_attention.heads import Heads
from weitune.model.fast.self_attention.positions import Positions, Rotary

_LEAST = 256
"""Positions that are computed at once, at least."""


@dataclass(frozen=True, slots=True, eq=False)
class HalfTurn:
    """The embeddings of B·T tokens for heads that are turned by halves."""

    cos: Tensor
    """(B·T, 1, 1, D/2)"""
    sin: Tensor
    """(B·T, 1, 2, D/2): negative for the first half"""

    @classmethod
    def of(cls, rotary: tuple[Tensor, Tensor]) -> HalfTurn:
        """Return those of cosines and sines (B, T, D), whose halves are alike."""
        half = rotary[0].shape[-1] // 2
        cos, sin = (x.view(-1, 1, 1, 2 * half)[..., :half] for x in rotary)
        return cls(cos, torch.cat([-sin, sin], dim=2))

    def split(self, projected: Tensor, rows: int, groups: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return query (B, H, T, D), key and value (B, G, T, D), from all three side by side (B·T, (H + 2·G)·D)."""
        tokens, turning = len(projected), projected.shape[1] // size - groups
        halves = projected.view(tokens, -1, 2, size // 2)[:, :turning]
        turned = (halves * self.cos).addcmul_(halves.flip(2), self.sin).view(rows, tokens // rows, turning, size)
        value = projected.view(rows, tokens // rows, -1, size)[:, :, turning:]
        turned = turned.transpose(1, 2)
        return turned[:, : turning - groups], turned[:, turning - groups :], value.transpose(1, 2)


class Turns:
    """The embeddings of T tokens of B rows, by the kind of layer, made for each dtype when they are asked for."""

    def __init__(self, positions: Positions) -> None:
        """``positions`` are in float32."""
        self._positions = positions
        self._made: dict[tuple[str | None, torch.dtype], Rotary] = {}
        self._quick: dict[tuple[str | None, torch.dtype], HalfTurn] = {}

    def of(self, kind: str | None, dtype: torch.dtype) -> Rotary:
        """Return what the model's function takes besides the heads."""
        if (kind, dtype) not in self._made:
            self._made[kind, dtype] = _each(
                lambda x: x.to(dtype) if x.is_floating_point() else x, self._positions.rotary_of(kind)
            )
        return self._made[kind, dtype]

    def quick(self, kind: str | None, dtype: torch.dtype) -> HalfTurn:
        if (kind, dtype) not in self._quick:
            self._quick[kind, dtype] = HalfTurn.of(self.of(kind, dtype))
        return self._quick[kind, dtype]


class TurnTable:
    """The embeddings of all positions so far."""

    def __init__(self, decoder: Any, device: torch.device) -> None:
        self._decoder, self._device = decoder, device
        self._table: Positions | None = None
        self._length = 0

    def of(self, positions: Tensor, end: int) -> Turns:
        """Return the embeddings of ``positions`` (B, T), all of which are below ``end``."""
        if self._table is None or self._length < end:
            self._length = max(_LEAST, 1 << (end - 1).bit_length())
            every = torch.arange(self._length, device=self._device)
            self._table = Positions.of(self._decoder, torch.zeros(1, 1, device=self._device), every[None])
        table = self._table.rotary
        return Turns(Positions({kind: _each(lambda x: x[0][positions], rotary) for kind, rotary in table.items()}))


def _each(change: Callable[[Tensor], Tensor], rotary: Rotary) -> Rotary:
    return tuple(map(change, rotary)) if isinstance(rotary, tuple) else change(rotary)


@torch.no_grad()
def half_turns(heads: Heads) -> bool:
    """Return whether :meth:`HalfTurn.split` computes what ``heads`` does between projections and attention."""
    if any(heads.norms) or heads.gate or heads.size % 2 or heads.rotation.function is None:
        return False
    groups, random = heads.groups, torch.Generator().manual_seed(0)
    angles = torch.randn(2, 3, heads.size // 2, generator=random).repeat(1, 1, 2)
    rotary = angles.cos(), angles.sin()
    projected = [torch.randn(6, count * heads.size, generator=random) for count in (2 * groups, groups, groups)]
    try:
        expected = heads.split(projected, 2, rotary)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
        for a, b in zip(
            HalfTurn.of(rotary).split(torch.cat(projected, dim=1), 2, heads.groups, heads.size), expected, strict=True
        )
    )
