"""Find the part of a causal language model below its output head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_of(model: PreTrainedModel) -> Any:
    """Return the module that computes the hidden states of ``model``.

    ``get_decoder`` looks for it under a few names. Where a family has another (Llama 4), it returns the model itself,
    and where the output layer is called so (ModernBERT's decoder), that.
    """
    decoder: Any = model.get_decoder()
    return model.model if decoder is model or isinstance(decoder, nn.Linear) else decoder
