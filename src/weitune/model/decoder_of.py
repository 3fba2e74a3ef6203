"""Find the part of a causal language model below its output head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_of(model: PreTrainedModel) -> Any:
    """Return the module that computes the hidden states of ``model``.

    ``get_decoder`` looks for it under a few names and, where a family has another (Llama 4), returns the model itself.
    """
    decoder: Any = model.get_decoder()
    return decoder if decoder is not model else model.model
