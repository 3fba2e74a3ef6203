"""What the processor can do, as PyTorch knows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def processor_features() -> Mapping[str, Any]:
    """Return features such as ``amx_bf16``, and ``cpu_name``; none with a PyTorch that does not tell them."""
    features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return features
