"""Find out whether a model can be decoded here: its first layers are run in both ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weitune.generate.decode.decoder import StepDecoder
from weitune.model.fast.attention import tree_attention
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.self_attention.observe import FOREVER
from weitune.model.fast.settings import settings
from weitune.model.rotation_by_length import rotates_by_length
from weitune.model.windows import tells_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of the logits, relative to their norm."""
_TOKENS = 12
_UNSUITABLE = (ValueError, TypeError, AttributeError, RuntimeError, KeyError, IndexError)


def decodable_blocks(model: PreTrainedModel) -> BlockDecoder | None:
    """Return the blocks of ``model``, or None if :class:`.StepDecoder` does not compute what the model does.

    Costs two passes of 12 tokens through as many layers as there are kinds, usually one.
    """
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return None
    blocks = BlockDecoder.from_model(model)
    if blocks is None or rotates_by_length(model):
        return None
    if blocks.positions < (getattr(model.config.get_text_config(), "max_position_embeddings", None) or FOREVER):
        return None
    if any(p.magnitude is not None for parts in blocks.parts for group in parts.groups for p in group.projections):
        return None
    if not tells_windows(model):  # a text longer than the probe's would show it
        return None
    return blocks if _computes_the_same(model, blocks) else None


@torch.inference_mode()
def _computes_the_same(model: PreTrainedModel, blocks: BlockDecoder) -> bool:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    few = _one_of_each_kind(blocks)
    try:
        with _shortened(blocks.module, few), tree_attention(model, on=False):
            ids = torch.tensor([tokens], device=model.get_input_embeddings().weight.device)
            expected = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        decoder = StepDecoder(model, BlockDecoder(blocks.module, blocks.parts[:few], blocks.dtype))
        cache = decoder.new_cache(1)
        decoder.read([tokens[:-1]], cache, 0)
        logits = decoder.step(tokens[-1:], [_TOKENS - 1], cache)[0].float()
    except _UNSUITABLE:
        return False
    return bool((logits - expected).norm() <= _TOLERANCE.get(blocks.dtype, 0) * expected.norm())


def _one_of_each_kind(blocks: BlockDecoder) -> int:
    """Return how many of the first layers have one of every kind among them."""
    kinds = [settings(parts.layer) for parts in blocks.parts]
    return 1 + max(kinds.index(kind) for kind in set(kinds))


@contextmanager
def _shortened(decoder: Any, layers: int) -> Iterator[None]:
    """Leave the decoder its first ``layers`` layers in the block."""
    whole = decoder.layers
    decoder.layers = nn.ModuleList(whole[:layers])
    try:
        yield
    finally:
        decoder.layers = whole
