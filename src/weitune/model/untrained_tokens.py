"""Find added tokens that a base was never trained on: LoRA on its linear layers cannot teach it to write them.

Tokens that are held in reserve keep the output weights they were initialised with, which are the same for all of them,
or zero. Whatever the hidden state is, such a token gets the same logit as the others, and none of them is ever chosen.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from weitune.messages import joined, say
from weitune.model.storage.shard import gathered
from weitune.recipe.schema import Lora

_SAME = 0.01
"""Rows that are closer than this part of an ordinary row's norm are the same, up to rounding and weight decay."""
_ORDINARY = 256
"""Rows at the start of the vocabulary from which an ordinary norm is taken."""
_UNUSED = 8
"""Rows beyond the tokenizer's vocabulary that are looked at."""


@torch.no_grad()
def untrained_tokens(model: Any, tokenizer: Any, learned: Collection[int]) -> list[int]:
    """Return those of the ``learned`` tokens that ``model`` was never trained on, in order.

    They were added to the vocabulary, and have the output weights of another added token or of a row beyond the
    vocabulary, or weights that are zero. Cost: a copy of the rows of all added tokens, 256 at a time.
    """
    head = model.get_output_embeddings()
    looked_at = sorted(set(learned) & set(tokenizer.added_tokens_decoder))
    if head is None or not looked_at:
        return []
    with gathered(head):
        weight = head.weight
        if weight.dim() != 2 or not weight.is_floating_point():  # packed by bitsandbytes
            return []
        beyond = max(tokenizer.get_vocab().values()) + 1
        others = [*tokenizer.added_tokens_decoder, *range(beyond, beyond + _UNUSED)]
        looked_at, others = ([i for i in ids if i < len(weight)] for ids in (looked_at, others))
        norm = weight[:_ORDINARY].float().norm(dim=1).median()
        return [token for token in looked_at if _nearest(weight, token, others) <= _SAME * norm]


def _nearest(weight: Tensor, token: int, others: list[int]) -> Tensor:
    """Return the distance of a row of ``weight`` (V, C) from zero or from the nearest of the ``others``."""
    row = weight[token].float()
    ids = torch.tensor([i for i in others if i != token], device=weight.device, dtype=torch.long)
    near = [(weight[part].float() - row).norm(dim=1) for part in ids.split(256) if len(part)]
    return torch.cat([row.norm().view(1), *near]).min()


def untrained_note(model: Any, tokenizer: Any, lora: Lora, untrained: Collection[int]) -> str | None:
    """Return a note on the ``untrained`` tokens that a ``model`` with its adapter does not train either, if any.

    Where output and embeddings share their weights, ``lora.train_tokens`` trains both.
    """
    if not untrained:
        return None
    head = model.get_output_embeddings()
    if any(p.requires_grad for name, p in head.named_parameters() if "trainable_tokens" not in name):
        return None
    tied = getattr(model.config, "tie_word_embeddings", False)
    tokens = tokenizer.convert_ids_to_tokens(list(untrained))
    left = [token for token in tokens if not tied or token not in (lora.train_tokens or ())]
    if not left:
        return None
    named = joined(", ", left)
    if not tied:
        return say("model.untrained_tokens.untied", tokens=named)
    every = ",".join([*(lora.train_tokens or ()), *left])
    return say("model.untrained_tokens.tied", tokens=named, option=f'--lora.train_tokens "{every}"')
