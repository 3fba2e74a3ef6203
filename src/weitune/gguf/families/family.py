"""What a family's parameters become in a GGUF file.

A parameter of transformers becomes one tensor of llama.cpp, or several:

    self_attn.q_proj           attn_q           rows in another order
    input_layernorm            attn_norm        1 added, where transformers adds it while it computes
    mlp.experts.gate_up_proj   ffn_gate_exps    the first half of the rows of every expert
                               ffn_up_exps      the second half

A :class:`Part` says which, as functions of tensors. Those of rows and of columns are linear, so an adapter follows:
what is done to the rows of a weight W (out, in) is done to the rows of B (out, R), what is done to the columns of W to
the columns of A (R, in).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from weitune.gguf.metadata import Field

Operation = Callable[[Tensor], Tensor]
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_KINDS = ("weight", "bias")


def same(tensor: Tensor) -> Tensor:
    """Return ``tensor``."""
    return tensor


class Part(NamedTuple):
    """One tensor of a GGUF file, as functions of a parameter; each works on the first dimension of what it gets."""

    name: str
    """Within its layer; without ``.weight`` or ``.bias`` if those are named as in transformers."""
    rows: Operation = same
    """What happens to the rows of a weight, to a bias, and to a vector."""
    columns: Operation = same
    values: Operation = same
    """What happens to the whole parameter, where no adapter of llama.cpp can express it."""
    columns_are_inputs: bool = True
    """Whether each column is still what one input of the parameter is multiplied by."""
    undo: Operation = same
    """What undoes ``values``."""

    def of(self, parameter: Tensor) -> Tensor:
        """Return the tensor that ``parameter`` becomes."""
        tensor = self.values(self.rows(parameter))
        return tensor if self.columns is same else self.columns(tensor.transpose(0, 1)).transpose(0, 1)

    def of_importance(self, importance: Tensor) -> Tensor | None:
        """Return what the importance of the parameter's columns, shape (in,), becomes; None if it says nothing here."""
        return self.columns(importance) if self.columns_are_inputs else None

    def of_adapter(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return what A (R, in) and B (out, R) of an adapter become."""
        return self.columns(a.T).T, self.rows(b)


class Pieces(NamedTuple):
    """Several tensors of a GGUF file that are one parameter."""

    parts: tuple[Part, ...]
    whole: Callable[..., Tensor]
    """Returns the parameter, given the tensors of ``parts`` in their order."""


Parts = Mapping[str, str | Part | Pieces]
"""By the name of a module or a parameter, within a layer or at the top: a name alone if nothing else changes."""


@dataclass(frozen=True)
class Family:
    """A model's family in llama.cpp, and what its parameters become there."""

    name: str
    layer: Parts
    top: Parts
    fields: Mapping[str, Field] = field(default_factory=dict)
    """Metadata, without the family's name before each key."""
    computed: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that transformers computes from its configuration."""
    ignored: Sequence[str] = ()
    """Parameters within a layer that llama.cpp does not need."""

    def metadata(self) -> dict[str, Field]:
        return {f"{self.name}.{key}": value for key, value in self.fields.items()}

    def parts(self, parameter: str) -> list[Part] | None:
        """Return the tensors that ``parameter`` becomes, with their full names; None if GGUF has no place for it."""
        parts = self._found(parameter, "")
        if parts is not None:
            return parts
        module, _, kind = parameter.rpartition(".")
        return self._found(module, f".{kind}") if kind in _KINDS else None

    def entry(self, parameter: str) -> str | Part | Pieces | None:
        """Return what the layer or the top has for ``parameter``, or for its module; None if it has nothing."""
        match = _LAYER.fullmatch(parameter)
        name, entries = (match[2], self.layer) if match else (parameter, self.top)
        return entries.get(name) or entries.get(name.rpartition(".")[0])

    def adapter_parts(self, module: str) -> list[Part] | None:
        """Return the matrices that a linear layer becomes, with full names; None if no adapter can change them."""
        parts = self._found(module, ".weight")
        return parts if parts and all(part.values is same for part in parts) else None

    def _found(self, name: str, kind: str) -> list[Part] | None:
        match = _LAYER.fullmatch(name)
        if match and match[2] in self.ignored:
            return []
        found = self.layer.get(match[2]) if match else self.top.get(name)
        if found is None:
            return None
        before = f"blk.{match[1]}." if match else ""
        return [part._replace(name=f"{before}{part.name}{kind}") for part in listed(found)]


def listed(found: str | Part | Pieces) -> tuple[Part, ...]:
    """Return the tensors that an entry of :data:`Parts` names."""
    if isinstance(found, Pieces):
        return found.parts
    return (found if isinstance(found, Part) else Part(found),)
