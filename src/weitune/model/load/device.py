"""Choose the device and the number format of a model."""

from __future__ import annotations

from typing import Any

import torch

from weitune.errors import ModelError, first_line
from weitune.processor import processor_features
from weitune.ranks import local_rank, world_size
from weitune.recipe.schema import Storage


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the accelerator of this process, or the CPU; ``device`` overrides, and is returned if it was chosen so.

    Under a launcher each process gets the accelerator of its local rank. Raises ModelError if ``device`` cannot be
    used, as MPS cannot: it has no float64, in which losses are added up and fast blocks are tried.
    """
    if isinstance(device, torch.device):
        return device
    if device is not None:
        try:
            given, numbered = torch.empty(0, device=device).device, torch.device(device).index is not None
        except (RuntimeError, AssertionError) as error:
            raise ModelError("model.device.cannot_be_used", device=device, reason=first_line(error)) from None
        if given.type == "mps":
            raise ModelError("model.device.no_float64", device=device)
        return given if numbered or given.type == "cpu" else _of_rank(given.type)
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if kind is None or kind.type == "mps" else _of_rank(kind.type)


def _of_rank(kind: str) -> torch.device:
    return torch.device(kind, local_rank() % max(torch.accelerator.device_count(), 1))


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of the base model: ``auto`` is bfloat16 where ``device`` computes in it natively."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    match device.type:
        case "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        case "xpu":
            native = True
        case "cpu":
            native = any(processor_features().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        case _:
            native = False
    return torch.bfloat16 if native else torch.float32


def stored_dtype(storage: Storage, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of the weights that ``storage`` does not round, for a model computed in ``dtype``."""
    return {"auto": dtype, "fp32": torch.float32}.get(storage, torch.bfloat16)


def device_map(target: torch.device, *, spread: bool) -> Any:
    """Return transformers' ``device_map``: one device, or ``auto`` for ``spread`` if this one process owns several."""
    return "auto" if spread and owns_several(target) else {"": target}


def owns_several(target: torch.device) -> bool:
    """Return whether this is a run's one process and sees other GPUs beside ``target``."""
    return world_size() == 1 and target.type == "cuda" and torch.cuda.device_count() > 1
