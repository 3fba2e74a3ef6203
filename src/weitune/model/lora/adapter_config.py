"""The configuration of an adapter on disk, as PEFT and the programs built on it write it, and what of it is refused.

PEFT passes over keys that it does not know, with a warning. An adapter that needs one of them would compute something
else, so it is refused here.
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


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of the adapter in ``folder``. Raises RunError if there is none that can be read."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"'{folder}' holds no adapter: it has no {CONFIG}", "Give a folder as PEFT writes it.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' cannot be read: {error}", "Copy the adapter again.") from None
    if not isinstance(found, dict):
        raise RunError(f"'{path}' is not a JSON object", "Copy the adapter again.")
    return found


def check_adapter(folder: Path) -> None:
    """Raise RunError unless ``folder`` has a LoRA adapter in safetensors that the installed PEFT knows all of."""
    config = read_adapter_config(folder)
    check_files(folder)
    if config.get("peft_type") != "LORA":
        raise RunError(
            f"the adapter in '{folder}' is of the kind {config.get('peft_type')}, and weitune opens LoRA only",
            "Merge it with the program that made it, and give the merged model.",
        )
    if config.get("task_type") not in _TASKS:
        raise RunError(
            f"the adapter in '{folder}' was trained for {config['task_type']}, not to answer",
            f"Give an adapter whose `task_type` in {CONFIG} is CAUSAL_LM.",
        )
    if unknown := _unknown(config):
        from importlib.metadata import version

        raise RunError(
            f"the adapter in '{folder}' needs {', '.join(unknown)}, which PEFT {version('peft')} does not know",
            "Install a newer PEFT:  pip install -U peft",
        )


def check_files(folder: Path) -> None:
    """Raise RunError unless the adapter's weights are there in safetensors."""
    if (folder / WEIGHTS).is_file():
        return
    if (folder / PICKLED).is_file():
        raise RunError(
            f"'{folder}' has its weights as a pickle ({PICKLED}), which weitune does not open: reading it can run code",
            f"If you trust it, load it with PEFT and save it again: PeftModel.save_pretrained writes {WEIGHTS}.",
        )
    raise RunError(f"'{folder}' has {CONFIG} and no {WEIGHTS}", "Copy the adapter again, with all of its files.")


def _unknown(config: dict[str, Any]) -> list[str]:
    """Return the keys that PEFT does not know and that switch something on; mere numbers and names do not."""
    from dataclasses import fields

    from peft import LoraConfig

    known = {field.name for field in fields(LoraConfig)}
    switches = (key for key, value in config.items() if value and isinstance(value, bool | dict | list))
    return sorted(key for key in switches if key not in known)
