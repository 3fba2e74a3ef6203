"""Attach a LoRA adapter to a model (Hu et al., arXiv 2106.09685), through PEFT."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weitune.errors import ModelError
from weitune.messages import say
from weitune.model.lora.experts import expert_targets
from weitune.model.lora.lean_peft import lean_peft
from weitune.model.lora.linear_layers import sizes
from weitune.model.lora.named_like_experts import NO_MODULES, attach_by_hand, name_weights
from weitune.model.lora.saved_modules import train_in_float32
from weitune.model.lora.targets import Targets, find_targets
from weitune.recipe.schema import TAKEN_FROM_BASE, Lora

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """How many parameters a model has, and how many of them are trained."""

    trainable: int
    total: int

    def __str__(self) -> str:
        percent = 100 * self.trainable / self.total
        return say("model.adapter.trainable_parameters", trainable=self.trainable, total=self.total, percent=percent)


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of ``model``, a shared one once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes))


def count_adapted(model: Any, lora: Lora, targets: Targets | None = None) -> ParameterCount:
    """Count what :func:`count_parameters` would count after :func:`attach_adapter`, without the slow import of PEFT.

    ``targets`` is what is adapted, if that is known. ``modules_to_save`` and ``train_tokens`` are not counted.
    """
    targets = targets or find_targets(model, lora)
    modules = dict(model.named_modules())
    total = trained = 0
    for name in targets.adapted:
        ranks = (r for key, r in (lora.rank_pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name))
        rank = next(ranks, lora.r)
        inputs, outputs = sizes(modules[name])
        a, b = rank * inputs, rank * outputs
        b += outputs if lora.dora else 0
        total += a + b
        trained += b if lora.freeze_a else a + b
    a, b = expert_targets(model, lora, recorded=targets.experts).adapter_numbers()
    total += a + b
    trained += b if lora.freeze_a else a + b
    return ParameterCount(trained, count_parameters(model).total + total)


def attach_adapter(
    model: PreTrainedModel,
    lora: Lora,
    *,
    seed: int,
    base: str,
    token_ids: Sequence[int] = (),
    targets: Targets | None = None,
) -> PeftModel:
    """Return ``model`` with a new adapter that does not change its outputs yet; ``seed`` determines its random parts.

    ``base`` is the name of the base model that the adapter records, ``token_ids`` the tokens of ``lora.train_tokens``,
    ``targets`` what is adapted, if that is known. :mod:`.adapter_init` has the initialisations that need more than the
    weights. Raises ModelError if a target module does not exist or cannot be adapted, or if the recipe's adapter does
    not fit the model.
    """
    targets = targets or find_targets(model, lora)
    with lean_peft():
        config = _config(model, lora, targets, list(token_ids))
    parameters = [name for name, _ in model.named_parameters()]
    with lean_peft(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        from peft import get_peft_model

        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match any targeted module")
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        train_in_float32(adapted)
        if targets.experts:
            _set_dropout(adapted, lora.dropout)
        if targets.weights:
            attach_by_hand(adapted, targets.weights)
            name_weights(adapted.peft_config["default"], targets.weights, parameters)
    adapted.peft_config["default"].base_model_name_or_path = base
    if lora.init in TAKEN_FROM_BASE:
        _take_from_base(adapted, lora.init, seed)
    else:
        draw_adapter(adapted, seed, gaussian=lora.init == "gaussian")
    if lora.freeze_a:
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
    return adapted


def _config(model: Any, lora: Lora, targets: Targets, token_ids: list[int]) -> LoraConfig:
    from peft import LoraConfig

    tied = getattr(model.config, "tie_word_embeddings", False)
    experts = expert_targets(model, lora, recorded=targets.experts)
    alphas = {**(lora.alpha_pattern or {}), **experts.alpha_pattern}
    return LoraConfig(
        r=lora.r,
        lora_alpha=_int_if_whole(lora.alpha),
        lora_dropout=0.0 if experts.parameters else lora.dropout,
        target_modules=targets.target_modules or NO_MODULES,
        layers_to_transform=targets.layers,
        target_parameters=experts.target_parameters or None,
        rank_pattern={**(lora.rank_pattern or {}), **experts.rank_pattern},
        alpha_pattern={name: _int_if_whole(alpha) for name, alpha in alphas.items()},
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True,
        modules_to_save=lora.modules_to_save,
        trainable_token_indices=token_ids or None,
        ensure_weight_tying=bool(lora.modules_to_save and tied),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _set_dropout(adapted: PeftModel, rate: float) -> None:
    """Give the adapters of linear layers their dropout: PEFT makes none with dropout where it adapts parameters too."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    adapted.peft_config["default"].lora_dropout = rate
    for module in adapted.modules():
        if rate and isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
            module.lora_dropout["default"] = nn.Dropout(rate)


def _take_from_base(adapted: PeftModel, init: str, seed: int) -> None:
    """Let PEFT initialise the float32 adapter with a part of the base, which it subtracts from the base's weights.

    If the configuration asked for it, PEFT would round A and B to the base's dtype after subtracting s B A; a resumed
    run, which knows only the rounded matrices, would then subtract something else.
    """
    from peft.tuners.lora.layer import LoraLayer

    method = {"pissa": "pissa_niter_16", "olora": "olora"}[init]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in (module for module in adapted.modules() if isinstance(module, LoraLayer)):
            if init == "pissa":
                layer.pissa_init("default", method)
            else:
                layer.olora_init("default")
    adapted.peft_config["default"].init_lora_weights = method


def _int_if_whole(alpha: float) -> Any:  # PEFT declares alpha as an int
    return int(alpha) if float(alpha).is_integer() else alpha


def token_ids_of(tokenizer: Any, tokens: Iterable[str]) -> list[int]:
    """Return the ids of ``tokens``. Raises ModelError if one is not in the vocabulary."""
    vocabulary: dict[str, int] = tokenizer.get_vocab() if tokens else {}
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ModelError("model.adapter.not_in_vocabulary", missing=", ".join(map(repr, missing)))
    return [vocabulary[token] for token in tokens]


def draw_adapter(model: nn.Module, seed: int, *, gaussian: bool = False) -> None:
    """Draw every A matrix again, on the CPU from a separate generator, so that all devices get the same.

    The distributions are PEFT's: Kaiming uniform with a = sqrt(5), as in LoRA's reference implementation, or normal
    with a standard deviation of 1 / rank.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_A." in name and not parameter.is_meta:
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            if gaussian:
                layer: Any = model.get_submodule(name.split(".lora_A.")[0])  # has the ranks of all its experts
                drawn.normal_(std=1 / layer.r["default"], generator=generator)
            else:
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)
