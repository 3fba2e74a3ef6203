"""Memory of some accelerators, for forecasts: gigabytes (10^9 bytes) as their makers state them.

With error correction a card shows up to a sixteenth less than so many binary gigabytes; decimal ones allow for that.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from weitune.errors import InputError


class Gpu(NamedTuple):
    """An accelerator, and the page that states its memory."""

    name: str
    gigabytes: float
    source: str
    bf16: bool = True
    """Whether it computes in bfloat16 natively; NVIDIA's do from compute capability 8.0 on."""

    @property
    def bytes(self) -> int:
        return int(self.gigabytes * 10**9)


_GEFORCE = "nvidia.com, GeForce {} product page"
_DATA_CENTRE = "nvidia.com, {} data sheet"
GPUS = (
    Gpu("RTX 3060", 12, _GEFORCE.format("RTX 3060 (12 GB)")),
    Gpu("RTX 3090", 24, _GEFORCE.format("RTX 3090")),
    Gpu("RTX 4060 Ti", 16, _GEFORCE.format("RTX 4060 Ti (16 GB)")),
    Gpu("RTX 4090", 24, _GEFORCE.format("RTX 4090")),
    Gpu("RTX 5090", 32, _GEFORCE.format("RTX 5090")),
    Gpu("T4", 16, _DATA_CENTRE.format("T4"), bf16=False),
    Gpu("L4", 24, _DATA_CENTRE.format("L4")),
    Gpu("L40S", 48, _DATA_CENTRE.format("L40S")),
    Gpu("A10", 24, _DATA_CENTRE.format("A10")),
    Gpu("V100", 32, _DATA_CENTRE.format("V100 (32 GB)"), bf16=False),
    Gpu("A100", 80, _DATA_CENTRE.format("A100 (80 GB)")),
    Gpu("H100", 80, _DATA_CENTRE.format("H100 (80 GB)")),
    Gpu("H200", 141, _DATA_CENTRE.format("H200")),
    Gpu("MI300X", 192, "amd.com, Instinct MI300X data sheet"),
)

_UNITS = {"": 1, "b": 1, "mb": 10**6, "gb": 10**9, "mib": 1 << 20, "gib": 1 << 30}


def find_gpu(name: str) -> Gpu:
    """Return the accelerator called ``name``; case, spaces and maker do not matter. Raises InputError."""
    wanted = _plain(name)
    for gpu in GPUS:
        if _plain(gpu.name) == wanted:
            return gpu
    known = ", ".join(gpu.name for gpu in GPUS)
    raise InputError("forecast.gpus.unknown", name=name, known=known)


def parse_memory(text: str) -> int:
    """Parse an amount of memory such as ``24GiB`` or ``80 GB`` into bytes. Raises InputError if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or not float(match[1]):
        raise InputError("forecast.gpus.no_amount", text=text)
    return int(float(match[1]) * unit)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|instinct|tesla|[\s_-]", "", name.lower())
