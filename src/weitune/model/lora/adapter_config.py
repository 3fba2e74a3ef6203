"""Read the configuration of an adapter as PEFT and programs built on it write it, and refuse unsuitable adapters.

PEFT ignores keys that it does not know, with a warning. An adapter that needs one of them would compute something else,
so it is refused here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weitune.errors import RunError
from weitune.model.file_names import ADAPTER_FILES

CONFIG, WEIGHTS = ADAPTER_FILES
PICKLED = "adapter_model.bin"
_TASKS = (None, "CAUSAL_LM")
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that take a part out of the base's weights: their adapters do not fit the unchanged base."""
LORA_DEFAULTS = {"r": 8, "lora_alpha": 8}
"""What PEFT takes where a configuration does not say."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of the adapter in ``folder``. Raises RunError if it is missing or cannot be read."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError("model.adapter_config.no_adapter", folder=folder, config=CONFIG) from None
    except (OSError, ValueError) as error:
        raise RunError("model.adapter_config.cannot_be_read", path=path, reason=error) from None
    if not isinstance(config, dict):
        raise RunError("model.adapter_config.not_json_object", path=path)
    return {**LORA_DEFAULTS, **config} if config.get("peft_type") == "LORA" else config


def check_adapter(folder: Path) -> None:
    """Raise RunError unless ``folder`` has a LoRA adapter in safetensors that the installed PEFT knows all of."""
    config = read_adapter_config(folder)
    check_files(folder)
    if config.get("peft_type") != "LORA":
        raise RunError("model.adapter_config.not_lora", folder=folder, kind=config.get("peft_type"))
    if config.get("task_type") not in _TASKS:
        raise RunError("model.adapter_config.other_task", folder=folder, task=config["task_type"], config=CONFIG)
    if config.get("init_lora_weights") == "lora_ga":  # PEFT takes its start out of the base, and not again on loading
        raise RunError("model.adapter_config.changed_base", folder=folder)
    if unknown := _unknown(config):
        from importlib.metadata import version

        keys = ", ".join(unknown)
        raise RunError("model.adapter_config.unknown_to_peft", folder=folder, keys=keys, version=version("peft"))


def check_files(folder: Path) -> None:
    """Raise RunError unless the adapter's weights are there in safetensors."""
    if (folder / WEIGHTS).is_file():
        return
    if (folder / PICKLED).is_file():
        raise RunError("model.adapter_config.pickled_weights", folder=folder, pickled=PICKLED, weights=WEIGHTS)
    raise RunError("model.adapter_config.no_weights", folder=folder, config=CONFIG, weights=WEIGHTS)


def _unknown(config: dict[str, Any]) -> list[str]:
    """Return the keys unknown to PEFT whose values are true, a list or an object: numbers and names enable nothing."""
    from dataclasses import fields

    from peft import LoraConfig

    known = {field.name for field in fields(LoraConfig)}
    enabled = (key for key, value in config.items() if value and isinstance(value, bool | dict | list))
    return sorted(key for key in enabled if key not in known)
