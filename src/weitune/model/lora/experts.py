"""Adapters of experts (``lora.experts``): parameters (E, ., .) of a mixture of experts, one matrix W_e per expert.

    y = (W_e + s B_e A_e) x        for a token x that the router sends to expert e

PEFT adapts them through ``target_parameters``. It keeps the A and the B of all E experts of one parameter in one matrix
each; of several parameters of one module, each but the last lies below further ``base_layer`` in the tensors' names.

    lora_A    (E·R, in)     row e·R + r is row r of A_e
    lora_B    (out, E·R)    column r·E + e is column r of B_e

R is max(1, ``lora.r`` // k) where a token goes to k experts, so that about ``lora.r`` ranks act on it in all, as in
"LoRA Without Regret" (Schulman et al., 2025); the scale is that of the other layers. Routers are never adapted.

Memory: whenever a layer runs, PEFT makes W + s B A of all its experts, each as large as W. Unless blocks are
recomputed, every layer's are kept until the backward pass, which also makes one gradient of that size at a time.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from weitune.model.lora.target_names import ends_with, pattern_value
from weitune.recipe.schema import Lora

_EXPERTS_PER_TOKEN = (
    "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k",
)  # fmt: skip
"""The names that configurations have for it."""
_LAYER = re.compile(r".*\.(\d+)\.")
_FORMER_LINEAR_LAYERS = {
    "qwen2_moe": frozenset({"gate", "gate_proj", "up_proj", "down_proj"}),
    "mixtral": frozenset({"gate", "w1", "w2", "w3"}),
}
"""What the experts' matrices and the router were called in transformers 4, by PEFT's name for a group of families."""


@dataclass(frozen=True, slots=True)
class ExpertParameter:
    """A parameter with a matrix for each of E experts."""

    module: str
    """Name of the module of experts, such as ``model.layers.0.mlp.experts``"""
    name: str
    """such as ``gate_up_proj``"""
    shape: torch.Size
    """(E, out, in), or (E, in, out) if ``transposed``"""
    transposed: bool
    """Whether PEFT takes it for transposed. It does not know that Llama 4's are: there A is what others call B."""
    wrappers: int
    """How many parameters of the same module PEFT wraps after this one."""

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def suffix(self) -> str:
        """The name below its decoder block, such as ``mlp.experts.gate_up_proj``."""
        return _LAYER.sub("", self.full_name, count=1)

    @property
    def layer(self) -> int | None:
        """The number of its decoder block."""
        match = _LAYER.match(self.full_name)
        return int(match[1]) if match else None

    @property
    def adapter(self) -> str:
        """What the names of its A and B begin with in a saved adapter, without PEFT's prefix."""
        return self.module + ".base_layer" * self.wrappers

    @property
    def inputs(self) -> int:
        return self.shape[1] if self.transposed else self.shape[2]

    @property
    def outputs(self) -> int:
        return self.shape[2] if self.transposed else self.shape[1]

    def adapter_numbers(self, rank: int) -> tuple[int, int]:
        """Return how many numbers A and B have."""
        return rank * self.shape[0] * self.inputs, rank * self.shape[0] * self.outputs


def expert_parameters(model: nn.Module) -> list[ExpertParameter]:
    """Return the parameters of the experts of ``model``, which may be on the meta device and have no adapter yet.

    They are the 3-D parameters of modules whose class is called ``…Experts``, as transformers calls them. Experts that
    see every token are not among them.
    """
    found = []
    for name, module in model.named_modules():
        if not type(module).__name__.endswith("Experts") or "shared" in name.rpartition(".")[2]:
            continue
        matrices = [(each, p.shape) for each, p in module.named_parameters(recurse=False) if p.dim() == 3]
        transposed = bool(getattr(module, "is_transposed", False))
        for index, (each, shape) in enumerate(matrices):
            found.append(ExpertParameter(name, each, shape, transposed, len(matrices) - 1 - index))
    return found


def experts_per_token(config: Any) -> int:
    """Return to how many experts a token goes, by the text configuration of ``config``: at most, if layers differ."""
    text = config.get_text_config()
    for name in _EXPERTS_PER_TOKEN:
        count = getattr(text, name, None)
        if count:
            return int(max(count) if isinstance(count, list | tuple) else count)
    return 1


@dataclass(frozen=True, slots=True)
class ExpertTargets:
    """The experts that a recipe adapts, and how PEFT is told."""

    parameters: list[ExpertParameter] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    """of each parameter, by its full name"""
    target_parameters: list[str] = field(default_factory=list)
    """for PEFT: ends of names"""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """what PEFT needs besides the recipe's pattern"""
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The full names of the parameters."""
        return [each.full_name for each in self.parameters]

    def adapter_numbers(self) -> tuple[int, int]:
        """Return how many numbers their A and their B have."""
        numbers = [each.adapter_numbers(self.ranks[each.full_name]) for each in self.parameters]
        return sum(a for a, _ in numbers), sum(b for _, b in numbers)


def expert_targets(
    model: Any, lora: Lora, layers: Collection[int] | None = None, recorded: Collection[str] | None = None
) -> ExpertTargets:
    """Return what ``lora`` adapts of the experts of ``model``, whatever ``lora.experts`` says: nothing without experts.

    ``layers`` are the numbers of the only decoder blocks to adapt, or a run has ``recorded`` its ``target_parameters``.
    A key of ``lora.rank_pattern`` or ``alpha_pattern`` that matches an expert parameter applies to it as PEFT reads it:
    its rank or alpha as it stands.
    """
    parameters = [each for each in expert_parameters(model) if layers is None or each.layer in layers]
    if recorded is not None:
        parameters = [each for each in parameters if any(ends_with(each.full_name, end) for end in recorded)]
    rank = max(1, lora.r // experts_per_token(model.config)) if parameters else lora.r
    alpha = lora.alpha * (math.sqrt(rank / lora.r) if lora.rslora else rank / lora.r)
    ranks, own_rank, own_alpha = {}, [], []
    for each in parameters:
        theirs = pattern_value(lora.rank_pattern, each.full_name)
        ranks[each.full_name] = rank if theirs is None else theirs
        if theirs is None:
            own_rank.append(each)
            if pattern_value(lora.alpha_pattern, each.full_name) is None:
                own_alpha.append(each)
    changed = rank != lora.r
    return ExpertTargets(
        parameters,
        ranks,
        _names(parameters, expert_parameters(model)),
        dict.fromkeys(_names(own_rank, parameters), rank) if changed else {},
        dict.fromkeys(_names(own_alpha, parameters), alpha) if changed else {},
    )


def _names(some: Collection[ExpertParameter], of_all: Collection[ExpertParameter]) -> list[str]:
    """Return ends of names that match ``some`` of all parameters: one for all layers, or one for each of some layers.

    Keys of a pattern must not overlap: files sort them, and PEFT takes the first.
    """
    by_suffix: dict[str, list[ExpertParameter]] = defaultdict(list)
    for each in some:
        by_suffix[each.suffix].append(each)
    names = []
    for suffix, group in by_suffix.items():
        whole = len(group) == sum(each.suffix == suffix for each in of_all)
        names += [suffix] if whole else [f"{each.layer}.{suffix}" for each in group]
    return names


@dataclass(frozen=True, slots=True)
class ExpertUpdate:
    """The saved adapter of one :class:`ExpertParameter`: A (E·R, in), B (out, E·R) and the scale s."""

    a: Tensor
    b: Tensor
    scale: float
    experts: int
    transposed: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0] // self.experts

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the parameter that it fits."""
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        return (self.experts, inputs, outputs) if self.transposed else (self.experts, outputs, inputs)

    def of_expert(self, index: int) -> Tensor:
        """Return s B_e A_e in float32, laid out as the parameter is: (out, in), or (in, out) if transposed."""
        a = self.a[index * self.rank : (index + 1) * self.rank].float()
        b = self.b[:, index :: self.experts].float()
        update = (b @ a).mul_(self.scale)
        return update.T if self.transposed else update

    def of_all(self) -> Iterator[Tensor]:
        """Yield the update of every expert in order."""
        return (self.of_expert(index) for index in range(self.experts))


def names_peft_takes_for_experts(model_type: str) -> frozenset[str]:
    """Return last names of ``target_modules`` that PEFT turns into parameters of experts in a model of ``model_type``.

    In transformers 4 the experts of these models were linear layers, and PEFT (0.21) helps old adapters: given
    ``gate_proj`` and ``up_proj`` it adapts every expert, and not the shared experts or dense layers of these names.
    Those can still be adapted under the same tensor names through ``target_parameters`` that end with ``.weight``.
    """
    from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN

    group_of = {**_MODEL_TO_CONVERSION_PATTERN, "mixtral": "mixtral"}
    types = (model_type, model_type.removesuffix("_text"))  # PEFT may load the adapter into the model that wraps this
    return frozenset().union(*(_FORMER_LINEAR_LAYERS.get(group_of.get(each, ""), frozenset()) for each in types))
