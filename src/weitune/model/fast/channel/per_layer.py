"""Per-layer embeddings (Gemma 3n and 4): in each layer, x gates a vector that the token has for this layer alone.

    mix(x) = projection(act(gate(x)) · e)        x (T, C), e (T, P)

e is computed from the token's embeddings before the first layer. Cost: two products of C·P, of which P is small.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from weitune.model.fast.channel.activation import Activation, find_activation
from weitune.model.fast.compiled import fused
from weitune.model.fast.lora_forward import GroupPass, reference_group
from weitune.model.fast.matmul import linear
from weitune.model.fast.norm import Norm, read_norm
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.projection import LoraGroup, Projection, read_group, read_projection

_GATE, _PROJECTION = ("per_layer_input_gate",), ("per_layer_projection",)


@dataclass(frozen=True, slots=True, eq=False)
class PerLayerInput:
    """The mixer of one layer."""

    layer: nn.Module
    """The decoder layer, which has the two matrices"""
    gate: LoraGroup
    projection: LoraGroup
    activation: Activation
    carried: tuple[Hashable, ...]
    """The name of e"""
    mixes_tokens: bool = False

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        return self.gate, self.projection

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.gate.parameters + self.projection.parameters

    def begin(self, context: BlockContext) -> PerLayerPass:
        (name,) = self.carried
        gate, projection = (GroupPass.begin(group, context.dropout) for group in self.groups)
        return PerLayerPass(self.activation, gate, projection, context.carried[name].detach())

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        (name,) = self.carried
        (gate,) = reference_group(self.gate, x, context.dropout)
        inner = self.activation[0](gate) * context.carried[name]
        (output,) = reference_group(self.projection, inner, context.dropout)
        return output

    def with_adapters(self) -> PerLayerInput | None:
        gate, projection = read_group(self.layer, _GATE), read_group(self.layer, _PROJECTION)
        return replace(self, gate=gate, projection=projection) if gate and projection else None


@dataclass(slots=True, eq=False)
class _Saved:
    gate: Tensor
    """(T, P) before the activation"""
    low_gate: Tensor | None
    low_projection: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class PerLayerPass:
    """The mixer in one pass."""

    activation: Activation
    gate: GroupPass
    projection: GroupPass
    embedded: Tensor
    """(T, P) e"""

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None) -> tuple[Tensor, _Saved]:
        (gate,), low_gate = self.gate.forward(x)
        (output,), low_projection = self.projection.forward(_gated(gate, self.embedded, self.activation[0]))
        return output if base is None else output.add_(base), _Saved(gate, low_gate, low_projection)

    def backward(
        self, grad: Tensor, x: Tensor, saved: _Saved, *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        activate, write_grad = self.activation
        gate = saved.gate.clone() if retain else saved.gate
        activated = activate(gate)
        inner = activated * self.embedded
        grad_inner, projection_grads = self.projection.backward([grad], saved.low_projection, inner)
        grad_embedded = grad_inner * activated
        write_grad(grad_inner.mul_(self.embedded), gate)  # which is its gradient from here on
        if needs_input:
            grad_x, gate_grads = self.gate.backward([gate], saved.low_gate, x)
        else:
            grad_x, gate_grads = None, self.gate.backward_to_adapters([gate], saved.low_gate, x)
        return grad_x, [grad_embedded, *gate_grads, *projection_grads]


@fused
def _gated(gate: Tensor, embedded: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
    return activate(gate).mul_(embedded)


def read_per_layer_input(layer: Any, name: Hashable) -> PerLayerInput | None:
    """Return the mixer of ``layer`` with e under ``name``, or None if it has not the parts that are known here."""
    gate, projection = read_group(layer, _GATE), read_group(layer, _PROJECTION)
    activation = find_activation(getattr(layer, "act_fn", None))
    return PerLayerInput(layer, gate, projection, activation, (name,)) if gate and projection and activation else None


def per_layer_name(index: int) -> Hashable:
    """Return the name under which a pass carries e for the layer with this ``index``."""
    return "per-layer", index


@dataclass(frozen=True, slots=True, eq=False)
class PerLayerEmbeddings:
    """What computes e for every layer: an embedding of its own, and a projection of the token's embedding.

    e = (norm(W x · a) + embedding) · b        for each layer
    """

    decoder: Any
    projection: Projection
    """W, (L·P, C) for L layers"""
    norm: Norm
    width: int
    """P"""

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that :meth:`compute` takes for frozen."""
        decoder = self.decoder
        return [decoder.embed_tokens_per_layer, decoder.per_layer_model_projection, decoder.per_layer_projection_norm]

    def compute(self, input_ids: Tensor, hidden: Tensor) -> Tensor:
        """Return e of all layers (T, L, P) for ``input_ids`` (T,) and their embeddings ``hidden`` (T, C)."""
        embedded = self.decoder.embed_tokens_per_layer(input_ids).to(hidden.dtype)
        projected = linear(hidden, self.projection.weight(hidden.dtype))
        projected = projected.mul_(self.decoder.per_layer_model_projection_scale).view(-1, self.width)
        total = self.norm.forward(projected)[0].add_(embedded.view(-1, self.width))
        return total.mul_(self.decoder.per_layer_input_scale).view(len(hidden), -1, self.width)


def read_per_layer_embeddings(decoder: Any, norm: Norm | None = None) -> PerLayerEmbeddings | None:
    """Return what computes e for the layers of ``decoder``, or None if it is not of the known kind, or adapted.

    Its ``norm`` is read if it is not given.
    """
    projection = read_projection(getattr(decoder, "per_layer_model_projection", None))
    norm = norm or read_norm(getattr(decoder, "per_layer_projection_norm", None))
    embedding = getattr(decoder, "embed_tokens_per_layer", None)
    if projection is None or projection.rank or norm is None or embedding is None:
        return None
    return PerLayerEmbeddings(decoder, projection, norm, decoder.hidden_size_per_layer_input)
