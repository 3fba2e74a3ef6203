"""Modules that are trained whole (``lora.modules_to_save``) beside frozen ones in 16 bits.

Steps of 1e-4 vanish in bfloat16, whose numbers near 1 are 0.008 apart. So PEFT's copy of such a module is trained, and
computes, in float32; what it reads is widened, and what it returns is narrowed to the format of the rest of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from peft import PeftModel


def train_in_float32(adapted: PeftModel) -> None:
    """Let the modules of ``adapted`` that are trained whole compute in float32, whatever the others compute in."""
    from peft.utils import ModulesToSaveWrapper

    for wrapper in adapted.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            _train_in_float32(wrapper.modules_to_save["default"], wrapper.original_module)


def original_modules(adapted: PeftModel) -> dict[str, nn.Module]:
    """Return the frozen modules beside those that are trained whole, by their names in the base model."""
    from peft.utils import ModulesToSaveWrapper

    return {
        name: wrapper.original_module
        for name, wrapper in adapted.get_base_model().named_modules()
        if isinstance(wrapper, ModulesToSaveWrapper)
    }


def _train_in_float32(trained: nn.Module, original: nn.Module) -> None:
    model_dtype = next((each.dtype for each in original.parameters()), torch.float32)
    if not model_dtype.is_floating_point or model_dtype == torch.float32:
        return

    def widened(_module: nn.Module, args: Any, keys: Any) -> tuple[Any, Any]:
        return _in(torch.float32, args), _in(torch.float32, keys)

    def narrowed(_module: nn.Module, _args: Any, output: Any) -> Any:
        return _in(next(original.parameters()).dtype, output)  # which may have been widened meanwhile

    trained.float()
    trained.register_forward_pre_hook(widened, with_kwargs=True)
    trained.register_forward_hook(narrowed)


def _in(dtype: torch.dtype, values: Any) -> Any:
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, values)
