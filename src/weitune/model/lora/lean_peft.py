"""PEFT without bitsandbytes, for models that are not quantized: its import takes as long as PEFT's own.

PEFT imports bitsandbytes in two places: for a function that chooses layers, which weitune does not use, and when it
puts adapters on layers, to recognise quantized ones. It also asks of every layer whether its weight is distributed,
which none is as long as nobody has imported the type. All this is kept from it only as long as the block lasts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

_BITSANDBYTES, _DISTRIBUTED_TENSOR = "bitsandbytes", "torch.distributed.tensor"


@contextmanager
def lean_peft() -> Iterator[None]:
    """Keep PEFT from importing bitsandbytes in the block, unless it is loaded already, as for a quantized model."""
    if _BITSANDBYTES in sys.modules:
        yield
        return
    _import_peft()
    import peft.tuners.lora.model as lora
    from peft.tuners import tuners_utils

    distributed = _DISTRIBUTED_TENSOR in sys.modules
    with (
        patch.multiple(lora, is_bnb_available=_no, is_bnb_4bit_available=_no),
        patch.object(tuners_utils, "_torch_supports_distributed", distributed),
    ):
        yield


def _import_peft() -> None:
    blocked: dict[str, Any] = sys.modules
    blocked[_BITSANDBYTES] = None  # which makes its import an ImportError
    try:
        import peft.helpers  # noqa: F401
    finally:
        del blocked[_BITSANDBYTES]


def _no() -> bool:
    return False
