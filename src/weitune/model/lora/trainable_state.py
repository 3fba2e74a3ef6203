"""The trained part of a model, and the two files that hold it in a checkpoint and at the end.

    LoraAdapter    adapter_config.json   adapter_model.safetensors    as PEFT writes and reads them
    WholeModel     config.json           model.safetensors            as transformers does

PiSSA and OLoRA begin by subtracting a part from the base: W = W' + s B₀ A₀ with W' frozen and A, B trained from A₀, B₀.
In the following form the result fits the original base, as a plain adapter of twice the rank that any program can load.

    W' + s B A  =  W + s (B A - B₀ A₀)  =  W + s [B, -B₀] [A; A₀]

Both halves are in every checkpoint, so a run resumes without computing A₀ and B₀ again.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from weitune.model.file_names import ADAPTER_FILES, MODEL_FILES
from weitune.model.load.names import ModelNames
from weitune.model.lora.wrapped_adapter import config_in_wrapper, in_text, in_wrapper
from weitune.recipe.schema import TAKEN_FROM_BASE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TrainableState(Protocol):
    """A model that is trained, or a part of it."""

    @property
    def model(self) -> nn.Module:
        """The module that has every trained parameter."""

    @property
    def files(self) -> tuple[str, str]:
        """Names of the files with the configuration and the tensors."""

    @property
    def names(self) -> ModelNames:
        """How the names of :meth:`tensors` relate to those of :attr:`model`."""

    def config(self) -> bytes:
        """Return the configuration, the same bytes for the same run."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved, by name; not copied."""

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of :meth:`tensors`."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore saved tensors of these :meth:`shapes` bit for bit."""

    def completed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return saved ``tensors`` with what earlier versions did not save, as it is now."""


class LoraAdapter:
    """A PEFT model and, if its initial adapter was subtracted from the base, that adapter.

    It is made when the adapter has just been attached. ``initialised_by`` is the ``lora.init`` of the adapter that will
    be loaded, if ``model`` was initialised in another way. What is saved has the wrapper's names of ``names``.
    """

    files = ADAPTER_FILES

    def __init__(self, model: PeftModel, *, initialised_by: str = "", names: ModelNames | None = None) -> None:
        self.model = model
        self.names = names or ModelNames()
        own = str(model.peft_config["default"].init_lora_weights).split("_")[0]
        self._taken = own in TAKEN_FROM_BASE or initialised_by in TAKEN_FROM_BASE
        self._start = {name: t.detach().cpu().clone() for name, t in self._matrices()} if own in TAKEN_FROM_BASE else {}

    def config(self) -> bytes:
        config = copy.deepcopy(self.model.peft_config["default"])
        config.init_lora_weights = True  # PEFT would subtract the initial adapter from the base again on loading
        config.eva_config, config.loftq_config = None, {}
        if config.target_parameters:
            config.lora_dropout = 0.0  # with parameters PEFT refuses another; it means nothing after training
        if self._taken:
            factor = math.sqrt(2) if config.use_rslora else 2  # so that alpha / rank stays what it was
            config.r *= 2
            config.lora_alpha *= factor
            config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
            config.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}
        fields = {**config.to_dict(), "inference_mode": True}
        if self.names.wrapped:
            fields = config_in_wrapper(fields, *_modules(self.model), self.names)
        return json.dumps(fields, indent=2, sort_keys=True, default=sorted).encode()  # sets are sorted lists

    def tensors(self) -> dict[str, Tensor]:
        """Return the adapter by PEFT's names; after PiSSA and OLoRA a plain one of twice the rank (see above)."""
        tensors = _adapter_tensors(self.model)
        for name, start in self._start.items():
            a = ".lora_A." in name
            now = tensors[name]
            tensors[name] = torch.cat([now, (start if a else -start).to(now.device)], dim=0 if a else 1)
        return in_wrapper(tensors, self.names)

    def shapes(self) -> dict[str, torch.Size]:
        shapes = {name: tensor.shape for name, tensor in _adapter_tensors(self.model).items()}
        if self._taken:
            for name, matrix in self._matrices():
                rows, columns = matrix.shape
                shapes[name] = torch.Size((2 * rows, columns) if ".lora_A." in name else (rows, 2 * columns))
        return in_wrapper(shapes, self.names)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a saved adapter, and subtract the initial one from the base if that has not been done yet."""
        from peft import set_peft_model_state_dict

        tensors = in_text(tensors, self.names)
        if self._taken:
            start = {}
            for name, _ in self._matrices():
                a = ".lora_A." in name
                tensors[name], rest = (half.contiguous() for half in tensors[name].chunk(2, dim=0 if a else 1))
                start[name] = rest if a else -rest
            if not self._start:
                _subtract_from_base(self.model, start)
            self._start = start
        set_peft_model_state_dict(self.model, tensors)

    def completed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def _matrices(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in _adapter_tensors(self.model).items():
            if ".lora_A." in name or ".lora_B." in name:
                yield name, tensor


class WholeModel:
    """A model all of whose weights are trained."""

    files = MODEL_FILES
    names = ModelNames()

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def config(self) -> bytes:
        return str(self.model.config.to_json_string(use_diff=True)).encode()

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights, shared ones once under their first name, and the buffers that belong to the model."""
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        return weights | _persistent_buffers(self.model)

    def shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.tensors().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])

    def completed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**_persistent_buffers(self.model), **tensors}


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are saved with a model, such as the biases by which some routers choose experts."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _modules(model: PeftModel) -> tuple[list[str], list[str]]:
    """Return the modules of the base model with a LoRA layer, and its other modules."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    adapted: list[str] = []
    others: list[str] = []
    inner = "."
    for name, module in model.get_base_model().named_modules():
        if name.startswith(inner):
            continue
        if isinstance(module, LoraLayer):
            inner = f"{name}."
            if not isinstance(module, ParamWrapper):
                adapted.append(name)
        elif name:
            others.append(name)
    return adapted, others


def _subtract_from_base(model: PeftModel, start: Mapping[str, Tensor]) -> None:
    """Subtract s B₀ A₀ from the base's weights, in the order of operations of PEFT's own initialisation."""
    modules: dict[str, Any] = dict(model.named_modules())
    for name, a in start.items():
        if ".lora_A." in name:
            layer = modules[name.split(".lora_A.")[0]]
            b = start[name.replace(".lora_A.", ".lora_B.")]
            weight = layer.get_base_layer().weight
            product = layer.scaling["default"] * b.to(weight.device) @ a.to(weight.device)
            weight.data = (weight.data.float() - product).to(weight.dtype)
