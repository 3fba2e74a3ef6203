"""The parts of a decoder block over a few tokens of several rows, with a cache and without what training needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from weitune.generate.decode.attend import Masks, attention
from weitune.generate.decode.cache import KeyValueCache, Place
from weitune.generate.decode.products import Product
from weitune.generate.decode.rotary import Turns, half_turns
from weitune.model.fast.channel.feed_forward import FeedForward
from weitune.model.fast.norm import Norm, RMSNorm
from weitune.model.fast.parts import BlockContext, BlockParts, Branch, Mixer
from weitune.model.fast.projection import LoraGroup
from weitune.model.fast.self_attention.latent import LatentAttention
from weitune.model.fast.self_attention.mixer import Attention

MakeProduct: TypeAlias = "Callable[[LoraGroup], Product]"
Step: TypeAlias = "Callable[[Tensor, Reading], Tensor]"
"""From the normalised hidden states (B·T, C) to what is added to the residual stream."""


@dataclass(slots=True, eq=False)
class Reading:
    """What all blocks share while T tokens of B rows are read."""

    cache: KeyValueCache
    place: Place
    turns: Turns
    masks: Masks


class AttentionStep:
    """Attention of one layer."""

    def __init__(self, mixer: Attention, layer: int, make: MakeProduct) -> None:
        self._heads, self._layer = mixer.heads, layer
        self._inputs, self._output = make(mixer.inputs), make(mixer.output)
        self._quick = half_turns(mixer.heads) and len(mixer.inputs.projections) == 3

    def __call__(self, x: Tensor, reading: Reading) -> Tensor:
        heads, rows = self._heads, len(reading.place.starts)
        if self._quick:
            turn = reading.turns.quick(heads.kind, x.dtype)
            query, key, value = turn.split(self._inputs.whole(x), rows, heads.groups, heads.size)
            return self._output(self._attended(query, key, value, reading).to(x.dtype))[0]
        projected = self._inputs(x)
        query, key, value = heads.split(projected, rows, reading.turns.of(heads.kind, x.dtype))
        attended = self._attended(query, key, value, reading).to(x.dtype)
        return self._output(heads.gated(attended, projected))[0]

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, reading: Reading) -> Tensor:
        keys, values = reading.cache.append(self._layer, key, value, reading.place)
        return attention(query.to(keys.dtype), keys, values, reading.masks, self._heads.scores)


class LatentStep:
    """Latent attention of one layer. The cache has the expanded keys and values."""

    def __init__(self, mixer: LatentAttention, layer: int, make: MakeProduct) -> None:
        self._mixer, self._layer = mixer, layer
        self._inputs, self._output = make(mixer.inputs), make(mixer.output)
        self._query = make(mixer.query.group) if mixer.query else None
        self._expand = make(mixer.expand.group)

    def __call__(self, x: Tensor, reading: Reading) -> Tensor:
        mixer, heads, rows = self._mixer, self._mixer.heads, len(reading.place.starts)
        query, compressed = self._inputs(x)
        if mixer.query is not None and self._query is not None:
            (query,) = self._query(mixer.query.norm.forward(query)[0])
        latent, shared = compressed.tensor_split([mixer.expand.group.inputs], dim=1)
        (expanded,) = self._expand(mixer.expand.norm.forward(latent)[0])
        rotary = reading.turns.of(heads.kind, x.dtype)
        query, key, value = heads.split([query, expanded, shared], rows, rotary)
        keys, values = reading.cache.append(self._layer, key, value, reading.place)
        attended = attention(query.to(keys.dtype), keys, values, reading.masks, heads.scores).to(x.dtype)
        return self._output(attended)[0]


class FeedForwardStep:
    """The feed-forward layer of one block."""

    def __init__(self, mixer: FeedForward, make: MakeProduct) -> None:
        self._gate_up, self._down = make(mixer.gate_up), make(mixer.down)
        self._activate = mixer.activation[0]

    def __call__(self, x: Tensor, _reading: Reading) -> Tensor:
        gate, *up = self._gate_up(x)
        inner = self._activate(gate)
        return self._down(inner.mul_(up[0]) if up else inner)[0]


class MixerStep:
    """A mixer of channels that is computed as in training, such as a mixture of experts."""

    def __init__(self, mixer: Mixer) -> None:
        self._mixer = mixer

    def __call__(self, x: Tensor, _reading: Reading) -> Tensor:
        context = BlockContext(None, None, keep_feed_forward=False)
        return self._mixer.begin(context).forward(x, None, None)[0]


class BranchStep:
    """A branch of the residual stream: h + multiplier · post(mix(pre(h)))."""

    def __init__(self, branch: Branch, mix: Step, *, exact: bool) -> None:
        self._pre, self._post = (_norm(norm, exact=exact) for norm in (branch.pre, branch.post))
        self._mix, self._multiplier = mix, branch.multiplier

    def __call__(self, hidden: Tensor, base: Tensor, reading: Reading) -> Tensor:
        """Return ``base`` plus what the branch makes of ``hidden``, both (B·T, C)."""
        mixed = self._mix(hidden if self._pre is None else self._pre(hidden), reading)
        if self._post is not None:
            mixed = self._post(mixed)
        return torch.add(base, mixed, alpha=self._multiplier)


class BlockStep:
    """A decoder block."""

    def __init__(self, parts: BlockParts, layer: int, make: MakeProduct, *, exact: bool) -> None:
        """Compute what ``parts`` do, with the products that ``make`` returns; norms in float32 if ``exact``.

        Raises TypeError for a mixer that is not known here.
        """
        self._branches = [BranchStep(each, _step(each.mixer, layer, make), exact=exact) for each in parts.branches]
        self._parallel, self._scale = parts.parallel, parts.scale

    def __call__(self, hidden: Tensor, reading: Reading) -> Tensor:
        """Return the block's output for ``hidden`` (B·T, C)."""
        output = hidden
        for branch in self._branches:
            output = branch(hidden if self._parallel else output, output, reading)
        return output if self._scale == 1 else output * self._scale


def _step(mixer: Mixer, layer: int, make: MakeProduct) -> Step:
    if isinstance(mixer, Attention):
        return AttentionStep(mixer, layer, make)
    if isinstance(mixer, LatentAttention):
        return LatentStep(mixer, layer, make)
    if isinstance(mixer, FeedForward):
        return FeedForwardStep(mixer, make)
    if mixer.mixes_tokens or mixer.carried:
        raise TypeError(type(mixer))
    return MixerStep(mixer)


def _norm(norm: Norm | None, *, exact: bool) -> Callable[[Tensor], Tensor] | None:
    """Return what computes ``norm`` with fewer operators than training does: x / hypot(|x|, √(C ε)) · √C weight."""
    if not isinstance(norm, RMSNorm):
        return None if norm is None else lambda x: norm.forward(x)[0]
    scale = len(norm.weight) ** 0.5
    least = torch.tensor(scale * norm.epsilon**0.5, device=norm.weight.device)
    if not exact:
        weight, least_16 = (norm.weight * scale).to(torch.bfloat16), least.to(torch.bfloat16)
        return lambda x: (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(least_16)).mul_(weight)
    weight = norm.weight

    def normed(x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).hypot_(least)
        output: Tensor = wide * length.reciprocal_().mul_(scale)
        return output.mul_(weight).to(x.dtype) if norm.exact else output.to(x.dtype).mul_(weight)

    return normed
