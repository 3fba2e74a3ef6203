"""Latent attention (DeepSeek-V2, arXiv 2405.04434) as a mixer of tokens.

    x ─┬─ [q_a ─ norm ─] q_b ────────────────── query ─┐
       │                                               ├─ attention ─ o ─▶
       └─ kv_a ─┬─ norm ─ kv_b ── keys and values ─────┤
                └──────────────── part of all keys ────┘

Query and keys have a part of size N without positions and a part of size R that the rotary embedding turns; all heads
share the keys' turned part. Each projection may have an adapter.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weitune.model.fast.attention import KERNELS, attention_for
from weitune.model.fast.kernels.scores import Scores
from weitune.model.fast.lora_forward import GroupPass, reference_group
from weitune.model.fast.norm import Norm, read_norm
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.projection import LoraGroup, read_group
from weitune.model.fast.self_attention.attend import Attended, AttendingPass
from weitune.model.fast.self_attention.observe import Observed, Rows, agree, observe
from weitune.model.fast.self_attention.positions import Positions, Rotary, kind_of
from weitune.model.fast.self_attention.rotary import ModelRotation, rotations, written_form

_COMPRESS, _EXPAND, _OUTPUT = "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"
_QUERY, _QUERY_DOWN, _QUERY_UP = "q_proj", "q_a_proj", "q_b_proj"
_QUERY_NORM, _NORM = "q_a_layernorm", "kv_a_layernorm"


@dataclass(frozen=True, slots=True, eq=False)
class LatentHeads:
    """From query (T, H·(N+R)), expanded keys and values (T, H·(N+V)) and shared keys (T, R) to (T, H·V)."""

    unturned: int
    """N"""
    turned: int
    """R"""
    scores: Scores
    kind: str | None
    rotation: ModelRotation

    def split(self, projected: Sequence[Tensor], rows: int, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return query and key (B, H, T, N+R) and value (B, H, T, V) of B ``rows``."""
        query, expanded, shared = (x.view(rows, len(x) // rows, -1) for x in projected)
        query = query.unflatten(-1, (-1, self.unturned + self.turned))
        expanded = expanded.unflatten(-1, (query.shape[2], -1))
        turned_query, turned_key = self.rotation(query[..., self.unturned :], shared.unsqueeze(2), rotary)
        query = torch.cat([query[..., : self.unturned], turned_query], dim=-1)
        turned_key = turned_key.expand(*query.shape[:3], self.turned)
        key = torch.cat([expanded[..., : self.unturned], turned_key], dim=-1)
        return query.transpose(1, 2), key.transpose(1, 2), expanded[..., self.unturned :].transpose(1, 2)

    def __call__(self, projected: Sequence[Tensor], positions: Positions) -> Tensor:
        query, key, value = self.split(projected, 1, positions.rotary_of(self.kind))
        out = KERNELS[attention_for(query.device)](query, key, value, positions.tree, self.scores)
        return out.reshape(out.shape[1], -1)


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A norm and a projection after it."""

    norm: Norm
    group: LoraGroup

    def begin(self, context: BlockContext) -> StagePass:
        return StagePass(self.norm, GroupPass.begin(self.group, context.dropout))

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        (output,) = reference_group(self.group, self.norm.reference(x), context.dropout)
        return output


@dataclass(frozen=True, slots=True, eq=False)
class StagePass:
    """A :class:`Stage` in one pass."""

    norm: Norm
    group: GroupPass

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output for ``x`` (T, K), and the low-rank states."""
        (output,), low = self.group.forward(self.norm.forward(x)[0])
        return output, low

    def backward(self, grad: Tensor, low: Tensor | None, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of ``x`` and of the adapter."""
        normed, statistics = self.norm.forward(x)
        grad_normed, adapter_grads = self.group.backward([grad], low, normed)
        return self.norm.backward(grad_normed, x, statistics), adapter_grads


@dataclass(frozen=True, slots=True, eq=False)
class LatentAttention:
    """The attention of one layer."""

    module: nn.Module
    """The layer's own module"""
    inputs: LoraGroup
    """What reads the input: the query or its latent state (T, L), and that of keys and values beside the shared keys"""
    query: Stage | None
    """From the query's latent state, if it has one"""
    expand: Stage
    """From the latent state of keys and values"""
    output: LoraGroup
    heads: LatentHeads
    mixes_tokens: bool = True
    carried: Sequence[Hashable] = ()

    @property
    def stages(self) -> list[Stage]:
        return [self.query, self.expand] if self.query else [self.expand]

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        return self.inputs, *(stage.group for stage in self.stages), self.output

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.groups for parameter in group.parameters]

    def begin(self, context: BlockContext) -> LatentPass:
        inputs = GroupPass.begin(self.inputs, context.dropout)
        query = self.query.begin(context) if self.query else None
        expand, output = self.expand.begin(context), GroupPass.begin(self.output, context.dropout)
        return LatentPass(inputs, query, expand, AttendingPass(self.heads, output, context.attention))

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        query, compressed = reference_group(self.inputs, x, context.dropout)
        latent, shared = _parted(compressed, self.expand.group.inputs)
        query = self.query.reference(query, context) if self.query else query
        attended = self.heads([query, self.expand.reference(latent, context), shared], context.attention)
        (output,) = reference_group(self.output, attended, context.dropout)
        return output

    def with_adapters(self) -> LatentAttention | None:
        return _read(self.module, self.heads, self.query.norm if self.query else None, self.expand.norm)


@dataclass(slots=True, eq=False)
class _Saved:
    query: Tensor
    """(T, L), before its norm"""
    latent: Tensor
    low_inputs: Tensor | None
    low_query: Tensor | None
    low_expand: Tensor | None
    attended: Attended


@dataclass(frozen=True, slots=True, eq=False)
class LatentPass:
    """Latent attention in one pass."""

    inputs: GroupPass
    query: StagePass | None
    expand: StagePass
    attending: AttendingPass

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None) -> tuple[Tensor, _Saved]:
        (first, compressed), low_inputs = self.inputs.forward(x)
        latent, shared = _parted(compressed, self.expand.group.group.inputs)
        query, low_query = self.query.forward(first) if self.query else (first, None)
        expanded, low_expand = self.expand.forward(latent)
        output, attended = self.attending.forward([query, expanded, shared], base, rows)
        return output, _Saved(first, latent, low_inputs, low_query, low_expand, attended)

    def backward(
        self, grad: Tensor, x: Tensor, saved: _Saved, *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        (grad_query, grad_expanded, grad_shared), output_grads = self.attending.backward(
            grad, saved.attended, retain=retain
        )
        query_grads: list[Tensor] = []
        if self.query:
            grad_query, query_grads = self.query.backward(grad_query, saved.low_query, saved.query)
        grad_latent, expand_grads = self.expand.backward(grad_expanded, saved.low_expand, saved.latent)
        grads = [grad_query, torch.cat([grad_latent, grad_shared], dim=1)]
        later_grads = query_grads + expand_grads + output_grads
        if not needs_input:
            return None, self.inputs.backward_to_adapters(grads, saved.low_inputs, x) + later_grads
        grad_x, input_grads = self.inputs.backward(grads, saved.low_inputs, x)
        return grad_x, input_grads + later_grads


def _parted(compressed: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the latent state (T, ``width``) and the shared keys (T, R)."""
    return compressed[:, :width].contiguous(), compressed[:, width:].contiguous()


def read_latent(module: Any, rows: Rows) -> LatentAttention | None:
    """Return the latent attention that ``module`` computes, or None if it has not these parts.

    The first module of each kind is called, with ``rows``.
    """
    if getattr(module, _COMPRESS, None) is None or getattr(module, _EXPAND, None) is None:
        return None
    heads: LatentHeads | None = rows.once("latent", module, lambda: _watched(module, rows))
    return _read(module, heads) if heads else None


def _watched(module: Any, rows: Rows) -> LatentHeads | None:
    seen = observe(module, rows)
    if seen is None:
        return None
    try:
        heads = _read_heads(module, seen)
        attention = _read(module, heads) if heads else None
        return heads if attention and _stages_agree(attention, seen) else None
    except (KeyError, RuntimeError, TypeError, ValueError):  # names or sizes do not match
        return None


def _has_latent_query(module: Any) -> bool:
    return getattr(module, _QUERY_DOWN, None) is not None


def _read_heads(module: Any, seen: Observed) -> LatentHeads | None:
    """Return what ``module`` does between its projections, tried against what was ``seen``."""
    query = seen.outputs[_QUERY_UP if _has_latent_query(module) else _QUERY].flatten(0, -2)
    expanded, compressed = (seen.outputs[name].flatten(0, -2) for name in (_EXPAND, _COMPRESS))
    _, shared = _parted(compressed, seen.inputs[_EXPAND].shape[-1])
    turned = shared.shape[1]
    unturned = seen.heads[0].shape[-1] - turned
    if seen.scores.sinks is not None:
        return None
    for rotation in rotations(module):
        heads = LatentHeads(unturned, turned, seen.scores, kind_of(module), rotation)
        try:
            split = heads.split([query, expanded, shared], 1, seen.rotary)
        except (RuntimeError, TypeError, ValueError):  # not a function for such heads
            continue
        if all(agree(ours, theirs) for ours, theirs in zip(split, seen.heads, strict=True)):
            parts = seen.heads[0][..., unturned:].transpose(1, 2), shared[None, :, None]
            return replace(heads, rotation=replace(rotation, written=written_form(rotation, *parts, seen.rotary)))
    return None


def _stages_agree(attention: LatentAttention, seen: Observed) -> bool:
    """Return whether what lies before and after the heads is nothing but norms."""
    latent, _ = _parted(seen.outputs[_COMPRESS].flatten(0, -2), attention.expand.group.inputs)
    pairs = [(attention.expand.norm.forward(latent)[0], seen.inputs[_EXPAND])]
    if attention.query:
        query = seen.outputs[_QUERY_DOWN].flatten(0, -2)
        pairs.append((attention.query.norm.forward(query)[0], seen.inputs[_QUERY_UP]))
    if seen.attended is not None:
        pairs.append((seen.attended.flatten(0, 1).flatten(1), seen.inputs[_OUTPUT]))
    return all(agree(ours, theirs.flatten(0, -2)) for ours, theirs in pairs)


def _read(
    module: Any, heads: LatentHeads, query_norm: Norm | None = None, norm: Norm | None = None
) -> LatentAttention | None:
    """Return the attention with the adapters that its layers have now; None if one is not plain LoRA or DoRA.

    Norms that are not given are read.
    """
    latent_query = _has_latent_query(module)
    inputs = read_group(module, (_QUERY_DOWN if latent_query else _QUERY, _COMPRESS))
    query = _read_stage(module, _QUERY_NORM, _QUERY_UP, query_norm) if latent_query else None
    expand, output = _read_stage(module, _NORM, _EXPAND, norm), read_group(module, (_OUTPUT,))
    if inputs is None or expand is None or output is None or (latent_query and query is None):
        return None
    return LatentAttention(module, inputs, query, expand, output, heads)


def _read_stage(module: Any, norm_name: str, name: str, norm: Norm | None) -> Stage | None:
    norm, group = norm or read_norm(getattr(module, norm_name, None)), read_group(module, (name,))
    return Stage(norm, group) if norm and group else None
