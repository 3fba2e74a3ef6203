"""A model without its weights: its parameters counted, its adapter sized, and its architecture probed in small.

    config.json ──▶ the model on PyTorch's meta device ──▶ how many parameters, how many of them trained
          └───────▶ two small layers with random weights ──▶ probe ──▶ does it share rows, is its block a plain one?

Costs about a second for any size of model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weitune.errors import ModelError, first_line
from weitune.forecast.memory_estimate import ModelShape
from weitune.messages import say
from weitune.model.capabilities import Capabilities, probe
from weitune.model.decoder_of import decoder_of
from weitune.model.load.config import dtype_on_disk, read_config
from weitune.model.load.locate import ModelFiles
from weitune.model.load.published import check_published, is_dequantized
from weitune.model.load.text_model import empty_model, model_from_config
from weitune.model.lora.adapter import ParameterCount, attach_adapter, count_adapted, count_parameters
from weitune.model.lora.experts import expert_parameters, experts_per_token
from weitune.model.lora.target_names import ends_with
from weitune.model.lora.targets import Targets, find_targets
from weitune.recipe.schema import Lora

if TYPE_CHECKING:
    from weitune.forecast.own_modules import OwnModules

_SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 16,
}  # fmt: skip
_SMALL_LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
"""Of latent attention, which expands its keys and values for every head."""
_LLAMA_PARTS = {
    "input_layernorm", "self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
}  # fmt: skip
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "activation_sparsity_pattern")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True, slots=True)
class MetaModel:
    """What a model's configuration tells about it."""

    shape: ModelShape
    parameters: int
    """Of the model and its adapter."""
    trainable: int
    linear: int
    """Weights of the linear layers of the decoder blocks: those that quantized storage shortens."""
    untied_embeddings: int
    """Weights of input embeddings that are not tied to the output head: few of their rows are ever read."""
    stored: torch.dtype | None
    """The number format on the disk, if the configuration names it and the file is mapped as it is."""
    targets: Targets | None
    """What gets an adapter; None if the whole model is trained."""
    gguf: bool
    """Whether the weights come from a .gguf file, which may have rounded them already."""
    capabilities: Capabilities
    computed: int = 0
    """Weights of the decoder blocks by which a token is multiplied: of experts, those that it goes to."""
    modules: OwnModules | None = field(default=None, compare=False)
    """Measures a pass, if no formula holds for it."""

    @property
    def frozen(self) -> int:
        return self.parameters - self.trainable


def build_meta_model(files: ModelFiles, lora: Lora | None, capabilities: Capabilities | None = None) -> MetaModel:
    """Return the model in ``files`` with the adapter that ``lora`` describes, or trained as a whole.

    Give its ``capabilities`` if it is loaded already; otherwise two small layers are probed. Raises ModelError if the
    configuration cannot be read, or if a target module does not exist.
    """
    check_published(files)
    config = read_config(files)
    converted = files.gguf or is_dequantized(files.folder)
    stored = None if converted else dtype_on_disk(config)  # making a model writes its own number format there
    try:
        model = empty_model(config)
    except Exception as error:
        raise ModelError("forecast.meta_model.no_model", folder=files.folder, error=first_line(error)) from error
    model.requires_grad_(lora is None)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    computed = linear + _computed_by_experts(model, config)
    capabilities = capabilities or _probe_small(config, model)
    if lora is None:
        targets, count = None, count_parameters(model)
        capabilities = replace(capabilities.by_modules(), head=None)
    else:
        targets = find_targets(model, lora)
        if _trains_head(model, lora, tied=tied):
            capabilities = replace(capabilities.by_modules(), head=None)
        elif any(name.startswith(f"{targets.blocks}.") for name in _saved(model, lora)):
            capabilities = capabilities.by_modules()
        count = _count(model, lora, targets)
    return MetaModel(
        shape=ModelShape.from_config(config),
        parameters=count.total,
        trainable=count.trainable,
        linear=linear,
        untied_embeddings=0 if tied else embeddings.weight.numel(),
        stored=stored,
        targets=targets,
        gguf=bool(files.gguf),
        capabilities=capabilities,
        computed=computed,
        modules=own_modules(files, lora, capabilities, model),
    )


def own_modules(files: ModelFiles, lora: Lora | None, capabilities: Capabilities, model: Any) -> OwnModules | None:
    """Return what measures the passes of ``model``, which is in ``files``, with the adapter that ``lora`` describes.

    None if the formulas of :mod:`.memory_estimate` hold for it.
    """
    from weitune.forecast.own_modules import OwnModules

    if capabilities.plain_blocks and has_llama_blocks(model):
        return None
    return OwnModules(lambda: read_config(files), lora, capabilities, model_from_config)


def has_llama_blocks(model: Any) -> bool:
    """Return whether every decoder layer of ``model`` has the parts of Llama's, by their names."""
    return all(_parts_of(layer) == _LLAMA_PARTS for layer in decoder_of(model).layers)


def _parts_of(layer: nn.Module) -> set[str]:
    """Return the names of the parts of ``layer`` that have parameters, and of their parts that have matrices."""
    sizes = {name: [p.dim() for p in part.parameters()] for name, part in layer.named_modules()}
    return {
        name for name, dims in sizes.items() if name and name.count(".") < 2 and max(dims, default=0) > name.count(".")
    }


def _computed_by_experts(model: Any, config: Any) -> int:
    """Return how many weights of experts a token is multiplied by."""
    per_token = experts_per_token(config)
    return sum(p.shape.numel() * min(per_token, p.shape[0]) // p.shape[0] for p in expert_parameters(model))


def _trains_head(model: Any, lora: Lora, *, tied: bool) -> bool:
    """Return whether the output layer of ``model``, or the embeddings that it shares, are trained."""
    parts = [model.get_output_embeddings(), *([model.get_input_embeddings()] if tied else [])]
    saved = any(module is part for module in _saved(model, lora).values() for part in parts)
    return saved or bool(tied and lora.train_tokens)


def _saved(model: Any, lora: Lora) -> dict[str, nn.Module]:
    """Return the modules that are trained whole, by their names."""
    ends = lora.modules_to_save or ()
    return {name: each for name, each in model.named_modules() if any(ends_with(name, end) for end in ends)}


def _count(model: Any, lora: Lora, targets: Targets) -> ParameterCount:
    if not (lora.modules_to_save or lora.train_tokens):
        return count_adapted(model, lora, targets)
    plain = lora.model_copy(update={"init": "default", "init_from": None})
    tokens = range(len(lora.train_tokens or ()))  # which ones does not matter here
    return count_parameters(attach_adapter(model, plain, seed=0, base="", token_ids=tokens, targets=targets))


def _probe_small(config: Any, model: Any = None) -> Capabilities:
    """Probe a small model of ``config``; ``model`` is the whole one, whose experts may be beyond the layers probed."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    try:
        _shrink(text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tried = model_from_config(small).eval()
            has_experts = bool(expert_parameters(tried))
            found = probe(tried)
        known = has_experts or model is None or not expert_parameters(model)
        return found if known else found.by_modules()
    except Exception as error:  # noqa: BLE001  (an unknown architecture may raise anything)
        return Capabilities(False, None, False, say("forecast.meta_model.not_probed", error=first_line(error)))


def _shrink(text: Any) -> None:
    """Make the configuration of a text model small: one layer of each kind that it lists, and two at least."""
    lists = {name: list(each) for name in _PER_LAYER if (each := getattr(text, name, None))}
    count = int(text.num_hidden_layers)
    givers = count - (getattr(text, "num_kv_shared_layers", None) or 0)  # later layers take an earlier one's keys
    kinds = (
        [(layer < givers, *(str(each[layer]) for each in lists.values())) for layer in range(count)] if lists else []
    )
    kept = sorted({kinds.index(kind) for kind in kinds})
    kept += [layer for layer in range(count) if layer not in kept][: max(0, 2 - len(kept))]
    kept.sort()
    own = text.to_dict().get("per_layer_config") or {}  # by the layer's number: values that this layer has alone
    if own:
        text.per_layer_config = {}
    latent = _SMALL_LATENT if getattr(text, "kv_lora_rank", None) else {}
    taking = sum(layer >= givers for layer in kept)
    sizes = {**_SMALL, **latent, "num_hidden_layers": len(kept), "num_kv_shared_layers": taking}
    for name, value in sizes.items():
        if found := getattr(text, name, None):
            setattr(text, name, [value] * len(kept) if isinstance(found, list) else value)
    if own:
        text.per_layer_config = _own_of_kept(own, kept)
    for name, each in lists.items():
        setattr(text, name, [each[layer] for layer in kept])
    for name in _TOKENS:
        setattr(text, name, None)


def _own_of_kept(own: Mapping[str, Mapping[str, Any]], kept: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the values that the ``kept`` layers have alone, by their new numbers; sizes are twice the small ones."""
    by_layer = {int(layer): values for layer, values in own.items()}
    return {
        f"{now:02d}": {name: 2 * _SMALL[name] if name in _SMALL else value for name, value in by_layer[before].items()}
        for now, before in enumerate(kept)
        if before in by_layer
    }
