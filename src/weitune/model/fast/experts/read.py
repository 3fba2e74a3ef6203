"""Find the mixture of experts that a module computes, by its parts, and try on a few rows what they leave open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from weitune.model.fast.channel.feed_forward import read_feed_forward
from weitune.model.fast.experts.gate import read_gate
from weitune.model.fast.experts.matrices import ExpertMatrices, read_adapters
from weitune.model.fast.experts.mixture import Mixture
from weitune.model.fast.experts.routed import RoutedExperts
from weitune.model.fast.experts.router import read_router
from weitune.model.fast.experts.shared import GatedExpert
from weitune.model.fast.norm import Norm
from weitune.model.fast.parts import BlockContext, Mixer
from weitune.model.fast.projection import read_group
from weitune.model.storage.weight_storage import is_linear

_SAMPLE_ROWS = 4
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Relative distance by the dtype of the weights, otherwise 0.05: a wrong reading is far beyond it."""


def read_mixture(module: Any) -> Mixture | None:
    """Return the mixture of experts that ``module`` computes, with its adapters, or None if it is of no known kind.

    It has ``experts`` with all their matrices in two parameters, a router, and perhaps shared experts, one of which may
    have a gate. What that does not decide is tried: whether weights multiply the inputs or the outputs of experts.
    """
    experts = getattr(module, "experts", None)
    matrices = _read_matrices(experts)
    if matrices is None:
        return None
    gate_up, down = matrices
    gate = read_gate(gate_up.module, down.weight.shape[1 if down.transposed else 2])
    children = {name: child for name, child in module.named_children() if child is not experts}
    shared = _take_shared(module, children)
    if gate is None or shared is None or len(children) != 1:
        return None
    (own_router,) = children.values()
    sample = _sample(gate_up)
    with _evaluated(module), torch.no_grad(), suppress(RuntimeError):
        router = read_router(own_router, module, gate_up.weight.shape[0], sample)
        if router is None:
            return None
        expected = module(sample[None])
        expected = (expected[0] if isinstance(expected, tuple) else expected).view(sample.shape)
        ways = (False,) if gate_up.biased or down.biased else (False, True)
        candidates = [Mixture(module, RoutedExperts(router, gate_up, down, *gate, way), shared) for way in ways]
        distances = [_distance(mixture, sample, expected) for mixture in candidates]
        if min(distances) < _TOLERANCE.get(sample.dtype, 0.05):
            return candidates[distances.index(min(distances))]
    return None


def read_experts_beside(layer: Any, norm: Norm) -> Mixture | None:
    """Return the experts that a decoder layer has beside its feed-forward layer, or None if they are of no known kind.

    Their ``router`` reads what ``norm`` does, and they read what it returns (Gemma 4).
    """
    matrices = _read_matrices(getattr(layer, "experts", None))
    if matrices is None:
        return None
    gate_up, down = matrices
    gate = read_gate(gate_up.module, down.weight.shape[1 if down.transposed else 2])
    with _evaluated(layer), torch.no_grad():
        router = read_router(layer.router, layer, gate_up.weight.shape[0], _sample(gate_up))
    if gate is None or router is None:
        return None
    return Mixture(layer, RoutedExperts(router, gate_up, down, *gate, weighs_input=False, norm=norm))


def _read_matrices(experts: Any) -> tuple[ExpertMatrices, ExpertMatrices] | None:
    base = experts
    while hasattr(base, "base_layer"):
        base = base.base_layer
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters(recurse=False)} if base is not None else {}
    names = ("gate_up_proj", "down_proj")
    biases = {f"{name}_bias" for name in names} & shapes.keys()
    if shapes.keys() - biases != set(names) or any(len(shapes[name]) != 3 for name in names):
        return None
    up, down = shapes["gate_up_proj"], shapes["down_proj"]
    for transposed in (bool(getattr(base, "is_transposed", False)), True, False):
        outputs, inputs = (up[2], up[1]) if transposed else (up[1], up[2])
        if down == ((up[0], outputs // 2, inputs) if transposed else (up[0], inputs, outputs // 2)):
            found = (ExpertMatrices(base, name, transposed, f"{name}_bias" in biases) for name in names)
            return read_adapters(experts, *found)
    return None


def _take_shared(module: Any, children: dict[str, nn.Module]) -> list[Mixer] | None:
    """Take the shared experts, and the gate of one, out of the ``children`` of a mixture.

    Return their mixers, or None for more than one expert with a gate.
    """
    experts = {name: mixer for name, child in children.items() if (mixer := read_feed_forward(child))}
    gates = [name for name, child in children.items() if _outputs(child) == 1]
    for name in [*experts, *gates]:
        del children[name]
    if not gates:
        return list(experts.values())
    group = read_group(module, gates)
    if len(gates) > 1 or len(experts) != 1 or group is None:
        return None
    return [GatedExpert(expert, group, module, gates[0]) for expert in experts.values()]


def _outputs(layer: Any) -> int | None:
    """Return how many outputs a linear layer has, perhaps with PEFT's layer around it."""
    linear = getattr(layer, "base_layer", layer)
    return linear.out_features if is_linear(linear) else None


def _sample(gate_up: ExpertMatrices) -> Tensor:
    weight = gate_up.weight
    width = weight.shape[1 if gate_up.transposed else 2]
    drawn = torch.randn(_SAMPLE_ROWS, width, generator=torch.Generator().manual_seed(0))
    return drawn.to(weight.device, weight.dtype)


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Draw no dropout in ``module`` within the block."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True


def _distance(mixture: Mixture, sample: Tensor, expected: Tensor) -> float:
    ours = mixture.reference(sample, BlockContext(None, None))
    return float((ours - expected).float().norm() / expected.float().norm().clamp_min(1e-30))
