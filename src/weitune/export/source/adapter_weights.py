"""A LoRA adapter read from its files, and what it makes of a weight.

    LoRA     W + s B A                       s = alpha / r, or alpha / sqrt(r) with rank stabilisation
    DoRA     m * (W + s B A) / |W + s B A|   m, and the norm of every row, shape (out,)

LoRA: Hu et al., arXiv 2106.09685; rank stabilisation: Kalajdzievski, arXiv 2312.03732; DoRA: Liu et al.,
arXiv 2402.09353. All of it in float32, from the adapter's files alone: no model is in memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from weitune.errors import RunError
from weitune.model.file_names import holds_model

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)")
_DIGITS = re.compile(r"\d+")
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
"""Starts that take a part out of the base's weights: their adapters do not fit the base as it was."""


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """What an adapter holds for one linear layer: ``a`` (R, in), ``b`` (out, R), ``scale`` and perhaps DoRA's ``m``."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[0]

    def applied(self, weight: Tensor) -> Tensor:
        """Return the tuned weight (out, in) in float32. Raises RunError if the shapes do not fit."""
        if weight.shape != (self.b.shape[0], self.a.shape[1]):
            raise RunError(
                "export.adapter_weights.shapes_differ",
                shape=self.b.shape[0],
                shape2=self.a.shape[1],
                shape3=tuple(weight.shape),
            )
        tuned = torch.addmm(weight.float(), self.b, self.a, alpha=self.scale)
        if self.magnitude is not None:
            tuned *= (self.magnitude / tuned.norm(dim=1))[:, None]
        return tuned


class AdapterWeights:
    """The updates in a PEFT folder, by the name of the module that each belongs to."""

    def __init__(self, folder: Path) -> None:
        """Read ``folder``. Raises RunError if it is broken or holds what cannot be added to a base's weights."""
        config, tensors = _read(folder)
        self.folder = folder
        self._chosen_layers = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
        self._chosen_layers |= isinstance(config.get("target_modules"), str)  # a pattern, which may name layers
        self.alpha = float(config["lora_alpha"])
        self.updates = _updates(folder, config, tensors)

    def missing(self, modules: Iterable[str]) -> list[str]:
        """Return those of a base's ``modules`` that lack their update while the same module of other layers has one.

        An adapter that was made for some layers only lacks nothing.
        """
        if self._chosen_layers:
            return []
        kinds = {_DIGITS.sub("#", module) for module in self.updates}
        return [module for module in modules if module not in self.updates and _DIGITS.sub("#", module) in kinds]

    @property
    def has_magnitudes(self) -> bool:
        """Whether it is a DoRA adapter."""
        return any(update.magnitude is not None for update in self.updates.values())


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if holds_model(folder):
        raise RunError("export.adapter_weights.whole_model", folder=folder)
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    except Exception as error:
        raise RunError("export.adapter_weights.cannot_be_read", folder=folder, error=error) from error
    _refuse_foreign(folder, config)
    return config, tensors


def _refuse_foreign(folder: Path, config: dict[str, Any]) -> None:
    start = str(config.get("init_lora_weights")).lower()
    found = []
    if config.get("peft_type") != "LORA":
        found.append(f"it is of the kind {config.get('peft_type')}")
    found += [f"it has {key}" for key in ("fan_in_fan_out", "lora_bias", "layer_replication", "target_parameters",
                                          "trainable_token_indices", "alora_invocation_tokens", "use_bdlora")
              if config.get(key)]  # fmt: skip
    if config.get("bias", "none") != "none":
        found.append("it trains biases")
    if start.startswith(_CHANGED_BASE):
        found.append(f"its start '{start}' has changed the base's weights")
    if found:
        raise RunError("export.adapter_weights.cannot_be_exported", folder=folder, found="; ".join(found))


def _updates(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, LowRankUpdate]:
    parts: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, tensor in sorted(tensors.items()):
        match = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            strange.append(name)
        else:
            parts.setdefault(match["module"], {})[match["part"].split(".")[0]] = tensor.float()
    strange += [f"{module} (incomplete)" for module, found in parts.items() if not {"lora_A", "lora_B"} <= found.keys()]
    if strange or not parts:
        raise RunError(
            "export.adapter_weights.other_tensors",
            folder=folder,
            strange=", ".join(strange[:5]) or "none at all",
        )
    return {
        module: LowRankUpdate(
            found["lora_A"], found["lora_B"], _scale(config, module, found["lora_A"].shape[0]),
            found.get("lora_magnitude_vector"),
        )
        for module, found in parts.items()
    }  # fmt: skip


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Return s for ``module``, whose own alpha may differ from the adapter's."""
    alphas: dict[str, float] = config.get("alpha_pattern") or {}
    alpha = next((a for key, a in alphas.items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", module)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
