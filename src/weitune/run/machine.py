"""Versions and hardware of the machine that computes a run."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from weitune.messages import say
from weitune.processor import processor_features

_PACKAGES = ("weitune", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pyarrow")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return versions and hardware, which are needed to reproduce the run."""
    machine: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor_features().get("cpu_name") or platform.processor(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    if device.type == "cuda":
        machine["accelerators"] = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return machine


def arithmetic(device: torch.device) -> dict[str, Any]:
    """Return what decides the last bits of a result on ``device`` besides its inputs, for the keys of caches."""
    found: dict[str, Any] = {
        "versions": [_version("weitune"), torch.__version__, _version("transformers")],
        "device": device.type,
    }
    if device.type == "cpu":
        return {**found, "processor": processor_features().get("cpu_name"), "threads": torch.get_num_threads()}
    return {**found, "accelerator": torch.cuda.get_device_name(device)} if device.type == "cuda" else found


def machine_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each change in :func:`describe_machine`, any of which may change the last bits of results."""
    old, new = ({**machine, **machine.get("packages", {})} for machine in (before, now))
    keys = ("device", "processor", "threads", *_PACKAGES)
    return [
        say("run.machine.changed", name=key, before=old.get(key), now=new.get(key))
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
