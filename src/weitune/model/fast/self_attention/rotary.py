"""Rotary position embedding (Su et al., arXiv 2104.09864) of heads, forward and backward written out.

Pairs (a, b) of a head's first R values are turned by an angle that grows with the position:

    a' = a cos - b sin        b' = b cos + a sin        and the gradients are turned back

Families differ in what is a pair. Which form a model has is found by trying all against its own function: the written
one must give the same bits, because it computes the same products and sums.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from weitune.model.fast.compiled import fused

_CHOICES: tuple[Any, ...] = ((False, True), (False, True), ("halves", "neighbours", ""), (False, True))
"""for the fields of a :class:`Rotation`"""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A form of the embedding, written out."""

    neighbours: bool
    """whether pairs are neighbours, or one value of each half of the R"""
    apart: bool
    """whether the turned pairs of neighbours are written to two halves, as DeepSeek does"""
    repeated: Literal["", "halves", "neighbours"]
    """how R/2 cosines were made to R, if they were"""
    exact: bool
    """whether heads in 16 bits are turned in float32"""

    def __call__(self, query: Tensor, key: Tensor, rotary: Any) -> tuple[Tensor, Tensor]:
        """Turn ``query`` and ``key`` (B, T, H or G, D) by cosines and sines (B, T, R or R/2)."""
        half = rotary[0].shape[-1] // 2
        once = {"": slice(None), "halves": slice(half), "neighbours": slice(0, None, 2)}[self.repeated]
        cos, sin = (each[..., once].unsqueeze(2) for each in rotary)
        return self._turned(query, cos, sin), self._turned(key, cos, sin)

    def _turned(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if torch.is_grad_enabled() and heads.requires_grad:
            turned: Tensor = _Turned.apply(heads, cos, sin, self)  # type: ignore[no-untyped-call]
            return turned
        return self.turn(heads, cos, sin)

    def turn(self, heads: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
        """Turn ``heads`` (B, T, H, D), or gradients ``back``; ``cos`` and ``sin`` are (B, T, 1, R/2)."""
        dtype, width = heads.dtype, 2 * cos.shape[-1]
        if self.exact and dtype.itemsize == 2:
            heads, cos, sin = heads.float(), cos.float(), sin.float()
        out = torch.empty_like(heads, memory_format=torch.contiguous_format)
        a, b = self._pairs(heads, width, apart=self.apart and back)
        turned_a, turned_b = self._pairs(out, width, apart=self.apart and not back)
        torch.mul(a, cos, out=turned_a)
        torch.mul(b, cos, out=turned_b)
        if back:
            turned_a.add_(b * sin)
            turned_b.sub_(a * sin)
        else:
            turned_a.sub_(b * sin)
            turned_b.add_(a * sin)
        if width < heads.shape[-1]:
            out[..., width:] = heads[..., width:]
        return out.to(dtype)

    def _pairs(self, heads: Tensor, width: int, *, apart: bool) -> tuple[Tensor, Tensor]:
        if self.neighbours and not apart:
            return heads[..., 0:width:2], heads[..., 1:width:2]
        return heads[..., : width // 2], heads[..., width // 2 : width]


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.rotation = rotation
        return rotation.turn(heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.rotation.turn(grads[0], *ctx.saved_tensors, back=True), None, None, None


@dataclass(frozen=True, slots=True)
class ModelRotation:
    """A model's own function, and the written form that equals it, if there is one."""

    function: Callable[..., tuple[Tensor, Tensor]] | None
    """(query, key, rotary embedding …), with heads (B, H, T, D); None where a layer does not turn heads"""
    partial: bool = False
    """whether the function turns whole heads, and the model gives it only their first R values"""
    written: Rotation | None = None

    def __call__(self, query: Tensor, key: Tensor, rotary: Any) -> tuple[Tensor, Tensor]:
        """Turn ``query`` and ``key`` (B, T, H or G, D). On a GPU the model's function is compiled."""
        if self.function is None:
            return query, key
        if self.written is not None and not query.is_cuda:
            return self.written(query, key, rotary)
        arguments = rotary if isinstance(rotary, tuple) else (rotary,)
        width = arguments[0].shape[-1] if self.partial else None
        heads = query.transpose(1, 2), key.transpose(1, 2)
        turned = fused(self.function)(*(each[..., :width] for each in heads), *arguments)
        whole: Sequence[Tensor] = turned
        if width is not None:
            whole = [torch.cat([t, h[..., width:]], dim=-1) for t, h in zip(turned, heads, strict=True)]
        query, key = (each.transpose(1, 2) for each in whole)
        return query, key

    def turn_one(self, heads: Tensor, rotary: Any) -> Tensor:
        """Turn queries or keys (B, T, H, D) alone."""
        return self(heads, heads[:, :, :1], rotary)[0]


UNTURNED = ModelRotation(None)
"""What layers without positions do"""


def rotations(attention: Any) -> Iterator[ModelRotation]:
    """Yield what the module ``attention`` may do: the functions beside its class that turn heads, and nothing."""
    beside = vars(sys.modules[type(attention).__module__])
    named = (function for name, function in beside.items() if name.startswith("apply_rotary"))
    for function in map(_of_pairs, dict.fromkeys(named)):
        yield ModelRotation(function)
        yield ModelRotation(function, partial=True)
    yield UNTURNED


@functools.cache
def _of_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` for query and key, if it turns heads of one kind alone."""
    if list(inspect.signature(function).parameters)[1:2] != ["cos"]:
        return function
    return lambda query, key, *rotary: (function(query, *rotary), function(key, *rotary))


def written_form(own: ModelRotation, query: Tensor, key: Tensor, rotary: Any) -> Rotation | None:
    """Return the form that gives the bits of ``own`` for ``query`` and ``key`` (B, T, H or G, D), if there is one."""
    if own.function is None or not isinstance(rotary, tuple) or query.is_cuda:
        return None
    forms = itertools.starmap(Rotation, itertools.product(*_CHOICES))
    for form in forms:
        if all(_same_bits(form, own, query.to(d), key.to(d), rotary, d) for d in (torch.float32, torch.bfloat16)):
            return form
    return None


def _same_bits(form: Rotation, own: ModelRotation, query: Tensor, key: Tensor, rotary: Any, dtype: torch.dtype) -> bool:
    embedding = tuple(each.to(dtype) for each in rotary)
    try:
        ours, theirs = form(query, key, embedding), own(query, key, embedding)
    except RuntimeError:  # sizes do not match
        return False
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
