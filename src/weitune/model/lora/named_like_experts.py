"""Adapters on linear layers whose names PEFT takes for experts: shared experts, and dense layers beside experts.

In transformers 4 the experts of some models (DeepSeek, GLM, Qwen3-Next, Hunyuan and others) were linear layers
``gate_proj``, ``up_proj`` and ``down_proj``. PEFT turns these names in ``target_modules`` into the parameters that hold
all experts today, whatever else is called so, both when it makes an adapter and when it loads one. Two things follow:

    training   these layers get PEFT's usual layers after it has made all others
    saving     adapter_config.json names their weights in ``target_parameters``, which PEFT takes as they are.
               It loads the same tensors under the same names, and then needs ``lora_dropout`` to be 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from weitune.model.lora.target_names import pattern_value, shortest_ends

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

NO_MODULES = "dummy-target-modules"
"""With these ``target_modules`` PEFT makes an adapter without any layer, and does not object."""


def attach_by_hand(adapted: PeftModel, names: Iterable[str]) -> None:
    """Put PEFT's layers on the linear layers ``names`` of ``adapted``, which has the adapter of all other layers."""
    tuner: Any = adapted.base_model
    config, model = adapted.peft_config["default"], adapted.get_base_model()
    for name in names:
        parent, _, own = name.rpartition(".")
        tuner._create_and_replace(
            config, "default", model.get_submodule(name), own, model.get_submodule(parent), current_key=name
        )
        tuner.targeted_module_names.append(name)
    tuner._cast_adapter_dtype(adapter_name="default", autocast_adapter_dtype=True)


def name_weights(config: LoraConfig, names: Sequence[str], parameters: Iterable[str]) -> None:
    """Let ``config`` name the weights of the linear layers ``names``, of all ``parameters`` of the model."""
    if config.target_modules == NO_MODULES:
        config.target_modules = []
    weights = [f"{name}.weight" for name in names]
    config.target_parameters = sorted({*(config.target_parameters or ()), *shortest_ends(weights, parameters)})
    for pattern in (config.rank_pattern, config.alpha_pattern):
        used = {key: value for key, value in pattern.items() if any(pattern_value({key: True}, name) for name in names)}
        pattern |= {rf"({key})\.weight": value for key, value in used.items()}  # for parameters PEFT looks so
