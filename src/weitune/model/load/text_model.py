"""The text model of a configuration, whether it is one or wraps one together with a vision or audio tower.

    configuration          class
    Qwen2Config            Qwen2ForCausalLM         a text model
    Gemma3Config           Gemma3ForCausalLM        of its text_config: the tower is left out
    Qwen3VLConfig          TextForCausalLM          its family has no class for text alone: decoder and output head

Inside weitune every model is a text model, and ``model.config`` its configuration. :mod:`.names` relates the names of
its weights to those of the wrapper.
"""

from __future__ import annotations

import copy
import re
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast

from weitune.errors import ModelError

_OF_THE_WHOLE = ("tie_word_embeddings", "eos_token_id", "name_or_path", "quantization_config")
"""What a wrapper decides for its text model; transformers looks for it in the outermost configuration."""
_DECODER = re.compile("(?<!PreTrained)Model$")


def text_config(config: Any) -> Any:
    """Return the configuration of the text model: ``config`` itself, or a copy of the part that it wraps."""
    part = config.get_text_config()
    if part is config:
        return config
    text = copy.deepcopy(part)
    for name in _OF_THE_WHOLE:
        if (value := getattr(config, name, None)) is not None:
            setattr(text, name, value)
    if getattr(text, "dtype", None) is None:
        text.dtype = config.dtype
    text.architectures = [text_class(text).__name__]
    return text


def text_class(config: Any) -> type[Any]:
    """Return the causal language model of a text configuration.

    Raises ModelError if transformers has neither that nor a decoder for it.
    """
    kind = type(config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        chosen: type[Any] = found[0] if isinstance(found, tuple) else found
        return chosen
    named = _classes(kind)
    causal = [each for each in named if each.__name__.endswith("ForCausalLM")]
    decoders = [MODEL_MAPPING[kind]] if kind in MODEL_MAPPING else [e for e in named if _DECODER.search(e.__name__)]
    if causal:
        return causal[0]
    if not decoders:
        raise ModelError("model.text_model.no_class", kind=getattr(config, "model_type", kind.__name__))
    decoder: Any = decoders[0]
    return _with_head(decoder)


def model_from_config(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return the causal language model of a text configuration with random weights."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return text_class(config)._from_config(config, dtype=dtype)  # what AutoModel.from_config calls


def empty_model(config: Any) -> Any:
    """Return the model of a text configuration for its names and shapes: its weights are on the meta device.

    Nothing is drawn, and tables of positions stay on the CPU unless the model joins them with weights: PyTorch would
    import SymPy for both, which takes longer than all the rest. Such a model cannot compute.
    """
    with torch.device("meta"), no_init_weights():
        try:
            with _RangesOnCpu():
                model = model_from_config(config)
        except RuntimeError:
            model = model_from_config(config)
    model.tie_weights()
    return model


class _RangesOnCpu(TorchFunctionMode):
    """Makes ``torch.arange`` ignore the device of the context."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        options = options or {}
        return function(*args, **({"device": "cpu"} | options if function is torch.arange else options))


def _classes(kind: type[Any]) -> list[type[Any]]:
    """Return the model classes beside the configuration class ``kind`` that are made from such a configuration."""
    import importlib

    name = kind.__module__.replace(".configuration_", ".modeling_")
    if name == kind.__module__ or not name.startswith("transformers.models."):
        return []
    module = sys.modules.get(name) or importlib.import_module(name)
    models: list[Any] = [each for each in vars(module).values() if isinstance(each, type)]
    models = [each for each in models if issubclass(each, PreTrainedModel)]
    return [each for each in models if each.config_class is kind and each.__module__ == name]


class TextForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A decoder and an output head, for families whose only causal class sees images too.

    For text alone such a wrapper numbers the tokens of a row from 0, or from its first unmasked one: what its decoder
    and ``generate`` do by themselves.
    """

    base_model_prefix = "model"
    decoder_class: type[Any]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (declared so by transformers)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.decoder_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, *, logits_to_keep: int | Tensor = 0, **options: Any
    ) -> CausalLMOutputWithPast:
        """Return the logits (B, T, V), of the last ``logits_to_keep`` tokens or of those with these indices."""
        output = self.model(input_ids=input_ids, **options | {"return_dict": True})
        hidden = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)


@cache
def _with_head(decoder: Any) -> type[Any]:
    """Return :class:`TextForCausalLM` over ``decoder``, with what the family declares of all its models."""
    family = next(each for each in decoder.__mro__[1:] if issubclass(each, PreTrainedModel))
    parts = {"decoder_class": decoder, "config_class": decoder.config_class, "__module__": __name__}
    return type(f"{decoder.__name__.removesuffix('Model')}ForCausalLM", (TextForCausalLM, family), parts)
