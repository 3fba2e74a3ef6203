"""A LoRA adapter read from its files, and added to weights.

    LoRA     W + s B A                       s = alpha / r, or alpha / sqrt(r) with rank stabilisation
    DoRA     m * (W + s B A) / |W + s B A|   m, and the norm of every row, shape (out,)
    experts  W_e + s B_e A_e                 of every expert e of a parameter (:mod:`weitune.model.lora.experts`)

LoRA: Hu et al., arXiv 2106.09685; rank stabilisation: Kalajdzievski, arXiv 2312.03732; DoRA: Liu et al.,
arXiv 2402.09353. Everything is computed in float32 from the adapter's files alone: no model is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from weitune.errors import RunError
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, holds_model
from weitune.model.load.names import ModelNames
from weitune.model.load.weight_files import some_names
from weitune.model.lora.adapter_config import CHANGED_BASE, read_adapter_config
from weitune.model.lora.experts import ExpertParameter, ExpertUpdate
from weitune.model.lora.merge import lora_scale
from weitune.model.lora.wrapped_adapter import in_wrapper

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)")
_DIGITS = re.compile(r"\d+")
_UNSUPPORTED = (
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "modules_to_save",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_bdlora",
)


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """The update of one linear layer: A (R, in), B (out, R), the scale s and, for DoRA, the magnitude m (out,)."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def applied(self, weight: Tensor) -> Tensor:
        """Return ``weight`` (out, in) with the update added, in float32. Raises RunError if the shapes differ."""
        _check_shape((self.b.shape[0], self.a.shape[1]), weight)
        merged = torch.addmm(weight.float(), self.b, self.a, alpha=self.scale)
        if self.magnitude is not None:
            merged *= (self.magnitude / merged.norm(dim=1))[:, None]
        return merged


def applied(update: LowRankUpdate | ExpertUpdate, weight: Tensor, expert: int | None) -> Tensor:
    """Return ``weight``, a parameter or that of one ``expert`` (1, …), with the ``update`` added, in float32.

    Raises RunError if the shapes differ.
    """
    if isinstance(update, LowRankUpdate):
        return update.applied(weight)
    experts = range(update.experts) if expert is None else range(expert, expert + 1)
    _check_shape((len(experts), *update.shape[1:]), weight)
    merged = torch.empty(weight.shape, dtype=torch.float32)
    for row, index in enumerate(experts):
        torch.add(weight[row].float(), update.of_expert(index), out=merged[row])
    return merged


def _check_shape(shape: tuple[int, ...], weight: Tensor) -> None:
    if weight.shape != shape:
        raise RunError("export.adapter_weights.shapes_differ", adapter_shape=shape, base_shape=tuple(weight.shape))


class AdapterWeights:
    """The updates in a PEFT folder, by the names of their modules as they are in the file."""

    def __init__(self, folder: Path, names: ModelNames | None = None) -> None:
        """Read ``folder``; an adapter by the text model's ``names`` gets those of the wrapper.

        Raises RunError if it is broken, or if its adapter cannot be added to a base's weights.
        """
        config, read = _read(folder)
        tensors = in_wrapper(read, names) if names else read
        self.renamed = tensors.keys() != read.keys()
        self.folder = folder
        self._chosen_layers = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
        self._chosen_layers |= isinstance(config.get("target_modules"), str)  # a pattern, which may name layers
        self.alpha = float(config["lora_alpha"])
        self._config = config
        self.updates = _updates(folder, config, tensors)

    def by_parameter(
        self, experts: Iterable[ExpertParameter], in_model: Callable[[str], str]
    ) -> dict[str, LowRankUpdate | ExpertUpdate]:
        """Return the updates by the names of a model's parameters.

        ``experts`` are those of the model, ``in_model`` gives the model's name of a module.
        """
        named = [in_model(name) for name in self._config.get("target_parameters") or []]
        targets = [each for each in experts if any(f".{each.full_name}".endswith(f".{name}") for name in named)]
        modules = [each.module for each in targets]
        by_adapter = {
            replace(each, wrappers=modules[index + 1 :].count(each.module)).adapter: each
            for index, each in enumerate(targets)
        }
        updates: dict[str, LowRankUpdate | ExpertUpdate] = {}
        for module, update in self.updates.items():
            name = in_model(module)
            if name in by_adapter:
                parameter = by_adapter[name]
                count = parameter.shape[0]
                target = f"{module.removesuffix('.base_layer' * module.count('.base_layer'))}.{parameter.name}"
                scale = lora_scale(target, self._config, update.rank // count)
                updates[parameter.full_name] = ExpertUpdate(update.a, update.b, scale, count, parameter.transposed)
            else:
                updates[f"{name}.weight"] = update
        return updates

    def missing(self, updates: Collection[str], parameters: Iterable[str]) -> list[str]:
        """Return the ``parameters`` of a base without one of the ``updates`` if that of another layer has one.

        An adapter that was made for chosen layers lacks nothing.
        """
        if self._chosen_layers:
            return []
        kinds = {_DIGITS.sub("#", name) for name in updates}
        return [name for name in parameters if name not in updates and _DIGITS.sub("#", name) in kinds]

    @property
    def has_magnitudes(self) -> bool:
        return any(update.magnitude is not None for update in self.updates.values())


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if holds_model(folder):
        raise RunError("export.adapter_weights.whole_model", folder=folder)
    config = read_adapter_config(folder)
    try:
        tensors: dict[str, Tensor] = load_file(folder / ADAPTER_FILES[1])
    except Exception as error:
        raise RunError("export.adapter_weights.cannot_be_read", folder=folder, reason=error) from error
    _refuse_foreign(folder, config)
    return config, tensors


def _refuse_foreign(folder: Path, config: dict[str, Any]) -> None:
    if reasons := why_not_mergeable(config):
        raise RunError("export.adapter_weights.cannot_be_exported", folder=folder, reasons="; ".join(reasons))


def why_not_mergeable(config: Mapping[str, Any]) -> list[str]:
    """Return why adapters with this configuration of PEFT cannot be added to a base's weights; nothing if they can."""
    init = str(config.get("init_lora_weights")).lower()
    reasons = []
    if config.get("peft_type") != "LORA":
        reasons.append(say("export.adapter_weights.not_lora", kind=config.get("peft_type")))
    reasons += [say("export.adapter_weights.has_option", option=key) for key in _UNSUPPORTED if config.get(key)]
    if config.get("bias", "none") != "none":
        reasons.append(say("export.adapter_weights.trains_biases"))
    if init.startswith(CHANGED_BASE):
        reasons.append(say("export.adapter_weights.init_changed_base", init=init))
    return reasons


def _updates(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, LowRankUpdate]:
    parts: dict[str, dict[str, Tensor]] = {}
    others = []
    for name, tensor in sorted(tensors.items()):
        match = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            others.append(name)
        else:
            parts.setdefault(match["module"], {})[match["part"].split(".")[0]] = tensor.float()
    others += [
        say("export.adapter_weights.incomplete_update", module=module)
        for module, update in parts.items()
        if not {"lora_A", "lora_B"} <= update.keys()
    ]
    if others:
        raise RunError("export.adapter_weights.other_tensors", folder=folder, names=some_names(others))
    if not parts:
        raise RunError("export.adapter_weights.no_updates", folder=folder)
    return {
        module: LowRankUpdate(
            update["lora_A"],
            update["lora_B"],
            lora_scale(_target(config, module), config, update["lora_A"].shape[0]),
            update.get("lora_magnitude_vector"),
        )
        for module, update in parts.items()
    }


def _target(config: dict[str, Any], module: str) -> str:
    """Return the name that PEFT was asked to adapt, which patterns of alphas match: of a module, or of its weight."""
    weight = f"{module}.weight"
    named = config.get("target_parameters") or []
    return weight if any(f".{weight}".endswith(f".{name}") for name in named) else module
