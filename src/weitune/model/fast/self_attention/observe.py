"""Watch a module of attention compute a few random rows: what its projections return, and what it makes of that.

The module itself is called, with an attention that notes its arguments and returns random values. So windows, scaling,
caps and sinks are read off the call, wherever a family keeps them, and everything else can be tried against what was
seen (:func:`.read_heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from weitune.model.fast.kernels.scores import Scores
from weitune.model.fast.self_attention.positions import Positions, Rotary, kind_of
from weitune.model.fast.settings import settings

_NAME = "weitune_observed"
FOREVER = 1 << 24
"""A position that no conversation reaches."""
_FAILURES = (ValueError, TypeError, AttributeError, RuntimeError, LookupError, AssertionError, ImportError)
"""What a module raises that is called in another way."""


@dataclass(slots=True, eq=False)
class Observed:
    """What a module of attention did with T random rows."""

    rotary: Rotary
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """What each of its sub-modules returned"""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """What each of them was called with, at last"""
    heads: tuple[Tensor, ...] = ()
    """Query (1, H, T, D), key and value (1, G, T, D) as attention got them"""
    attended: Tensor | None = None
    """(1, T, H, D) what it was told that attention returned"""
    scores: Scores = field(default_factory=Scores)
    keys_given: bool = False
    """Whether keys and values were given to it as those of an earlier layer"""
    keys_shared: bool = False
    """Whether it left them for later layers"""


def observe(attention: Any, rows: Rows) -> Observed | None:
    """Call ``attention`` with ``rows``; None if it fails, or calls attention other than once."""
    try:
        seen = _called(attention, rows, rows.position_ids)
        if seen.heads:
            rows.limits.add(_scaled_from(attention, rows, seen))
    except _FAILURES:
        return None
    return seen if seen.heads else None


def _called(attention: Any, rows: Rows, position_ids: Tensor) -> Observed:
    """Call ``attention`` with ``rows``, told that they are at ``position_ids``; their rotary embedding stays."""
    seen = Observed(rows.positions.rotary_of(kind_of(attention)))
    arguments = {"position_embeddings": seen.rotary, "position_ids": position_ids, "attention_mask": None}
    shared = _SharedStates(attention, rows.hidden)
    with torch.no_grad(), _noting(attention, seen), _observed_attention(attention):
        attention(hidden_states=rows.hidden, **arguments, past_key_values=None, shared_kv_states=shared, observed=seen)
    seen.keys_given, seen.keys_shared = shared.were_read, bool(shared)
    return seen


def _scaled_from(attention: Any, rows: Rows, seen: Observed) -> int:
    """Return the first position from which ``attention`` makes other heads of the same rows; :data:`FOREVER` if none.

    Ministral 3 multiplies its queries by a number that grows with the position beyond the original context.
    """

    def as_seen(position: int) -> bool:
        heads = _called(attention, rows, torch.full_like(rows.position_ids, position)).heads
        return all(map(torch.equal, heads, seen.heads))

    if as_seen(FOREVER):
        return FOREVER
    low, high = int(rows.position_ids.max()), FOREVER
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if as_seen(middle) else (low, middle)
    return high


class _SharedStates(dict[str, tuple[Tensor, Tensor]]):
    """What layers share of keys and values, by the kind of layer: empty, but random heads are there to read."""

    def __init__(self, attention: Any, hidden: Tensor) -> None:
        self._size, self._hidden, self.were_read = getattr(attention, "head_dim", 0), hidden, False

    def __missing__(self, kind: str) -> tuple[Tensor, Tensor]:
        self.were_read = True
        key, value = _random(2, 1, 1, self._hidden.shape[1], self._size).to(self._hidden)
        return key, value


@contextmanager
def _noting(attention: nn.Module, seen: Observed) -> Iterator[None]:
    """Note the inputs and outputs of the sub-modules of ``attention``."""

    def note(name: str, inputs: Any, output: Any) -> None:
        seen.outputs[name], seen.inputs[name] = output, inputs[0]

    hooks = [
        child.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name, child in attention.named_children()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _observed_attention(attention: Any) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _note_attention)
    config = attention.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _note_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    observed: Observed,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if observed.heads or position_bias is not None:
        raise ValueError(module)
    observed.heads, observed.scores = (query, key, value), Scores(scaling, sliding_window or None, softcap, s_aux)
    observed.attended = _random(1, query.shape[2], query.shape[1], value.shape[-1]).to(value)
    return observed.attended, None


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Random rows at some positions, to call the modules of a decoder with."""

    hidden: Tensor
    """(1, T, C)"""
    position_ids: Tensor
    """(1, T)"""
    positions: Positions
    limits: set[int] = field(default_factory=set)
    """The first position of each kind of attention from which it computes something else"""
    known: dict[Hashable, Any] = field(default_factory=dict)
    """What was found out with them, by a name and the kind of module"""

    def once(self, name: str, module: nn.Module, find: Callable[[], Any]) -> Any:
        """Return the result of ``find``, which is called once for modules of one class, settings and kind of layer."""
        key = name, type(module), kind_of(module), settings(module)
        if key not in self.known:
            self.known[key] = find()
        return self.known[key]

    @classmethod
    def of(cls, decoder: Any) -> Rows:
        embeddings = decoder.get_input_embeddings()
        position_ids = torch.tensor([[0, 1, 2, 7, 30]], device=embeddings.weight.device)
        with torch.no_grad():
            embedded = embeddings(position_ids)
            hidden = _random(*embedded.shape).to(embedded)
            return cls(hidden, position_ids, Positions.of(decoder, hidden, position_ids))


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding."""
    if ours.shape != theirs.shape:
        return False
    distance = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)
    return bool(distance < (1e-2 if theirs.dtype.itemsize == 2 else 1e-4))


def _random(*shape: int) -> Tensor:
    """Return normal numbers, and leave the state of PyTorch's generators as it is."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
