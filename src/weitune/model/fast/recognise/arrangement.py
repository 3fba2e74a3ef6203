"""Find how a decoder layer arranges its parts by running its own forward with every part replaced by a stand-in.

A stand-in multiplies nothing: it notes what it is given and returns a random vector. What lies between the parts is
additions and constant factors, so every noted vector is a combination of the layer's input and earlier outputs, and
least squares finds the coefficients:

    input_layernorm            reads  h
    self_attn                  reads  input_layernorm
    post_attention_layernorm   reads  h + 0.5 self_attn
    mlp                        reads  post_attention_layernorm
    the layer returns                 h + 0.5 self_attn + 0.5 mlp

Names of norms therefore do not matter. Cost: no weight is read, and layers of one kind are run once.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weitune.model.fast.channel.side_by_side import SideBySide
from weitune.model.fast.norm import Norm
from weitune.model.fast.parts import BlockParts, Branch, Mixer
from weitune.model.fast.stand_in import UNSUITABLE, with_stand_ins

INPUT = ""
"""The name of the layer's input among the parts."""
_WIDTH = 64

Sum = dict[str, float]
"""A combination of the layer's input and the outputs of its parts, by their names."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What each part of a layer reads, in the order of the calls, and what the layer returns."""

    reads: dict[str, Sum]
    output: Sum


_TRACED: dict[Hashable, Wiring | None] = {}
"""By what layers of one kind have in common: their class, parts and settings, and their own scales."""


def trace(layer: nn.Module) -> Wiring | None:
    """Return the wiring of ``layer``, or None if there is more than additions and factors between its parts."""
    parts = [name for name, child in layer.named_children() if not isinstance(child, nn.Dropout | nn.Identity)]
    pairs = [name for name in parts if not _is_vector(layer, name)]
    for count in range(len(pairs), -1, -1):  # attention returns a pair, and some mixtures of experts do
        for chosen in itertools.combinations(pairs, count):
            wiring = _trace(layer, parts, chosen)
            if wiring is not None:
                return wiring
    return None


def _is_vector(layer: nn.Module, name: str) -> bool:
    """Return whether the parameters of a part are vectors, as those of a norm are."""
    return all(parameter.dim() < 2 for parameter in layer.get_submodule(name).parameters())


def _trace(layer: nn.Module, parts: Sequence[str], pairs: Sequence[str]) -> Wiring | None:
    draw = torch.Generator().manual_seed(0)
    known: dict[str, Tensor] = {}
    reads: dict[str, Sum] = {}

    def new(name: str) -> Tensor:
        known[name] = torch.randn(_WIDTH, generator=draw, dtype=torch.float64)
        return known[name].view(1, 1, _WIDTH)

    def stand_in(name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if name in reads:
                raise LookupError(name)
            given = args[0] if args else kwargs["hidden_states"]
            reads[name] = _combination(given, known)
            output = new(name)
            return (output, None) if name in pairs else output

        return forward

    try:
        with torch.no_grad():
            shadow = with_stand_ins(layer, {name: stand_in(name) for name in parts})
            output = type(layer).forward(shadow, new(INPUT), **_arguments(layer))
            return Wiring(reads, _combination(output[0] if isinstance(output, tuple) else output, known))
    except UNSUITABLE:
        return None


def _arguments(layer: nn.Module) -> dict[str, None]:
    """Return None for every argument of the layer's forward, besides its input, that has no default."""
    arguments = list(inspect.signature(type(layer).forward).parameters.values())[2:]
    named = (a for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD))
    return {a.name: None for a in named if a.default is a.empty}


def _combination(given: Tensor, known: Mapping[str, Tensor]) -> Sum:
    """Return the coefficients of ``given``. Raises ValueError if it is no combination of the ``known`` vectors."""
    basis, wanted = torch.stack(list(known.values()), dim=1), given.reshape(_WIDTH, 1).to(torch.float64)
    found = torch.linalg.lstsq(basis, wanted).solution
    if not torch.allclose(basis @ found, wanted, atol=1e-5):
        raise ValueError(given.shape)
    rounded = {name: _rounded(c) for name, c in zip(known, found[:, 0].tolist(), strict=True)}
    return {name: c for name, c in rounded.items() if c}


def _rounded(coefficient: float) -> float:
    """Return the number that least squares has found up to rounding: a whole one if it is near."""
    whole = round(coefficient)
    return float(whole) if abs(coefficient - whole) < 1e-6 else float(f"{coefficient:.12g}")


def _wiring(layer: nn.Module) -> Wiring | None:
    """Return the wiring of ``layer``, which is traced if no other layer of its kind has been."""
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    if any(tensor.numel() > 1 for tensor in own):
        return trace(layer)
    settings = {key: value for key, value in vars(layer).items() if isinstance(value, bool | int | float | str)}
    kind = (
        type(layer),
        *((name, type(part)) for name, part in layer.named_children()),
        *((key, value) for key, value in settings.items() if not key.endswith("idx")),
        *(float(tensor) for tensor in own),
    )
    if kind not in _TRACED:
        _TRACED[kind] = trace(layer)
    return _TRACED[kind]


def arrange(layer: nn.Module, mixers: Mapping[str, Mixer], norms: Mapping[str, Norm]) -> BlockParts | None:
    """Return the block that ``layer`` computes with its ``mixers`` and ``norms``, by the names of its parts.

    None if it is no sum of branches, each a mixer with at most one norm before it and one after, or several that share
    the one before.
    """
    wiring = _wiring(layer)
    if wiring is None or not wiring.reads.keys() <= mixers.keys() | norms.keys():
        return None
    scale = wiring.output.get(INPUT, 0.0)
    if not scale:
        return None
    output = {name: c / scale for name, c in wiring.output.items()}
    found: list[_Found] = []
    for name, given in wiring.reads.items():
        if name not in mixers:
            continue
        (first, *rest) = given
        pre = first if not rest and first in norms and given[first] == 1 else None
        post = next((norm for norm in norms if wiring.reads.get(norm) == {name: 1.0}), None)
        result = post or name
        multiplier = output.get(result, 0.0)
        branch = Branch(norms[pre] if pre else None, mixers[name], norms[post] if post else None, multiplier)
        found.append(_Found(branch, wiring.reads[pre] if pre else given, {result: multiplier}))
    return _block(found, output, layer, scale) or _block(_side_by_side(found), output, layer, scale)


@dataclass(frozen=True, slots=True)
class _Found:
    branch: Branch
    source: Sum
    """what it reads, before its norm"""
    results: Sum
    """what it adds to the stream"""


def _block(found: Sequence[_Found], output: Sum, layer: nn.Module, scale: float) -> BlockParts | None:
    """Return the block of these branches, or None if ``output`` is not what they add up to."""
    parallel = len(found) > 1 and all(each.source == {INPUT: 1.0} for each in found)
    stream, in_order = {INPUT: 1.0}, True
    for each in found:
        in_order = in_order and _close(each.source, stream)
        stream |= each.results
    if not _close(output, stream) or not (parallel or in_order):
        return None
    return BlockParts([each.branch for each in found], layer, parallel, scale)


def _side_by_side(found: Sequence[_Found]) -> list[_Found]:
    """Return the same, with neighbours that read the same norm of the same source as one branch."""
    joined: list[_Found] = []
    for (source, _, _), group in itertools.groupby(found, _what_it_reads):
        parts = list(group)
        if len(parts) == 1:
            joined += parts
            continue
        branches = [replace(part.branch, pre=None) for part in parts]
        results = {name: c for part in parts for name, c in part.results.items()}
        joined.append(_Found(Branch(parts[0].branch.pre, SideBySide(branches)), dict(source), results))
    return joined


def _what_it_reads(found: _Found) -> tuple[Any, ...]:
    branch = found.branch
    return tuple(sorted(found.source.items())), id(branch.pre), branch.mixer.mixes_tokens


def _close(a: Sum, b: Sum) -> bool:
    return a.keys() == b.keys() and all(abs(a[name] - b[name]) <= 1e-4 * abs(b[name]) for name in b)
