"""Attach a LoRA adapter to a model (Hu et al., arXiv 2106.09685), through PEFT."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weitune.errors import ModelError
from weitune.recipe.schema import Lora

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """How many numbers a model has, and how many of them are trained."""

    trainable: int
    total: int

    def __str__(self) -> str:
        """Return the line that the user sees before step 1."""
        share = 100 * self.trainable / self.total
        return f"trainable parameters: {self.trainable:,} of {self.total:,} ({share:.4f} %)"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of ``model``, a shared one once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes))


def attach_adapter(model: PreTrainedModel, lora: Lora, *, seed: int, base: str) -> PeftModel:
    """Return ``model`` with a fresh adapter: A random by ``seed``, B zero, so that nothing has changed yet.

    ``base`` is the name under which the adapter records its base model. Raises ModelError if a target module does not
    exist or is not a linear layer.
    """
    from peft import LoraConfig, get_peft_model

    check_targets(model, lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,  # PEFT's is a whole number
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    draw_adapter(adapted, seed)
    return adapted


def draw_adapter(model: nn.Module, seed: int) -> None:
    """Draw every A matrix anew on the CPU from a generator of its own: the same start on every device.

    The distribution is PEFT's and LoRA's reference implementation's: Kaiming uniform with a = sqrt(5).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_A." in name and not parameter.is_meta:
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)


def linear_names(model: Any) -> list[str]:
    """Return the last parts of the names of all linear layers, except the output head, in order of appearance."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = (
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    return list(dict.fromkeys(names))


def check_targets(model: Any, targets: Iterable[str]) -> None:
    """Raise ModelError unless every target names at least one linear layer of ``model``."""
    there = linear_names(model)
    missing = [target for target in targets if target.rsplit(".", 1)[-1] not in there]
    if missing:
        raise ModelError(
            f"lora.target_modules: this model has no linear layer named {', '.join(map(repr, missing))}",
            f"It has: {', '.join(there)}. Name those that shall get an adapter, "
            f"for example --lora.target_modules {','.join(there)}",
        )
