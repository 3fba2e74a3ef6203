"""The linear layers of a model, with the reasons why some get no adapter unless the recipe names them."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from weitune.model.decoder_of import decoder_of
from weitune.model.storage.weight_storage import is_quantized

Reason = Literal[
    "experts", "router", "fused", "indexer", "own_forward", "head", "outside_blocks", "outside_decoder",
    "saved", "dora", "layers", "not_named", "other",
]  # fmt: skip
"""Why a layer has no adapter; the catalogue has a text for each (``model.targets.why_router`` and others)."""
_ROUTERS = {"router", "gate", "shared_expert_gate"}
"""Names of modules that weigh experts, as whole parts of a name: ``gate_proj`` belongs to a feed-forward layer."""


class LinearLayers:
    """The linear layers of ``model``, which has no adapter yet and may be on the meta device."""

    def __init__(self, model: Any) -> None:
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self._head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        decoder = decoder_of(model) if hasattr(model, "get_decoder") else model
        self._decoder = next(name for name, module in self.modules.items() if module is decoder)
        self.blocks = ".".join(part for part in (self._decoder, _list_of_blocks(decoder, model)) if part)
        """The name of the list of decoder blocks."""

    def reasons(self) -> dict[str, Reason | None]:
        """Return for every linear layer why ``auto`` leaves it out, or None, and so for routers of other classes."""
        reasons: dict[str, Reason | None] = {}
        for name, module in self.modules.items():
            if is_linear(module):
                reasons[name] = self._reason(name, module)
            elif self._in_blocks(name) and _is_router(name, module) and _has_matrix(module):
                reasons[name] = "router"
        return reasons

    def experts(self) -> Iterator[str]:
        """Yield the names of the parameters (experts, rows, columns) that hold the matrices of experts."""
        for name, module in self.modules.items():
            if self._in_blocks(name) and "expert" in f"{name}.{type(module).__name__}".lower():
                for own, parameter in module.named_parameters(recurse=False):
                    if parameter.dim() == 3:
                        yield f"{name}.{own}"

    def names_in_decoder(self) -> list[str]:
        """Return the names of the linear layers that a recipe may name: not the head, nor those of a tower."""
        linear = (name for name, module in self.modules.items() if is_linear(module) and module is not self._head)
        return [name for name in linear if _is_below(name, self._decoder)]

    def last_names(self) -> list[str]:
        """Return the last parts of these names, each once."""
        return list(dict.fromkeys(name.rpartition(".")[2] for name in self.names_in_decoder()))

    def can_be_adapted(self, name: str) -> bool:
        """Return whether an adapter on the linear layer ``name`` would work."""
        return computes_product(self.modules[name]) and not self._is_read(name)

    def _is_read(self, name: str) -> bool:
        mixer, _, own = name.rpartition(".")
        return _reads_weight(self.modules[mixer], own)

    def _reason(self, name: str, module: nn.Module) -> Reason | None:
        tests: tuple[tuple[Reason, bool], ...] = (
            ("head", module is self._head),
            ("outside_decoder", not _is_below(name, self._decoder)),
            ("outside_blocks", not self._in_blocks(name)),
            ("router", _is_router(name, module)),
            ("indexer", "indexer" in name.split(".")),
            ("own_forward", not computes_product(module)),
            ("fused", self._is_read(name)),
        )
        return next((reason for reason, holds in tests if holds), None)

    def _in_blocks(self, name: str) -> bool:
        return _is_below(name, self.blocks)


def is_linear(module: nn.Module) -> bool:
    """Return whether ``module`` holds one matrix that PEFT can adapt: a linear layer, or GPT-2's transposed one."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def sizes(module: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    rows, columns = module.weight.shape  # Conv1D holds the matrix transposed
    return rows, columns


def computes_product(module: nn.Module) -> bool:
    """Return whether a linear layer computes nothing but x W (+ b): a class derived from it may do something else."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward or is_quantized(module):
        return True
    inputs, outputs = module.in_features, module.out_features
    probed = copy.copy(module)
    probed._parameters = {
        name: parameter if parameter is None else nn.Parameter(torch.empty(parameter.shape, device="meta"))
        for name, parameter in module._parameters.items()
    }
    try:
        output = probed(torch.empty(3, inputs, device="meta"))
    except Exception:  # noqa: BLE001  (it takes other inputs)
        return False
    return isinstance(output, torch.Tensor) and output.shape == (3, outputs)


def _list_of_blocks(decoder: nn.Module, model: Any) -> str:
    """Return the name of the decoder's list of as many modules as the model has layers, or of its longest one."""
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", 0)
    lists = [(name, len(child)) for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)]
    return max(lists, key=lambda item: (item[1] == layers, item[1]), default=("", 0))[0]


def _is_below(name: str, parent: str) -> bool:
    return not parent or name.startswith(f"{parent}.")


def _is_router(name: str, module: nn.Module) -> bool:
    return bool(_ROUTERS & set(name.split("."))) or "Router" in type(module).__name__


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def _reads_weight(mixer: nn.Module, child: str) -> bool:
    """Return whether a state-space mixer (Mamba) hands the weight of ``child`` to a kernel instead of calling it.

    An adapter on such a layer would have no effect where the kernel runs.
    """
    if not (hasattr(mixer, "A_log") and hasattr(mixer, "D")):
        return False
    try:
        source = inspect.getsource(type(mixer))
    except OSError:
        return True
    return re.search(rf"\bself\.{child}\.weight\b", source) is not None
