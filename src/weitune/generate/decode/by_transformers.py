"""Answers by transformers' own ``generate``, for models whose blocks are not known here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from weitune.model.rotation_by_length import short_row_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, StoppingCriteria
    from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True, slots=True)
class TransformersDecoder:
    """A model that transformers decodes."""

    model: PreTrainedModel
    stop_tokens: frozenset[int]
    pad: int
    in_step: bool = False
    """Whether all processes of a run generate together, each until the last one has finished."""

    def batches(self, prompts: Sequence[int], limits: Sequence[int], batch_size: int) -> Iterator[list[int]]:
        """Yield the numbers of prompts that are answered together, of whose lengths and ``limits`` they are given.

        The prompts of a batch have one limit, so that none is cut for a neighbour, are rotated by the same factors all
        through their answers (:mod:`weitune.model.rotation_by_length`), and have similar lengths, so that little is
        padded.
        """
        short = short_row_tokens(self.model)

        def together(at: int) -> tuple[int, int]:
            if short is None or prompts[at] + limits[at] <= short:
                return limits[at], 0
            return limits[at], min(prompts[at], short + 1)  # prompts of one length become long at one token

        for _, group in groupby(sorted(range(len(prompts)), key=together), key=together):
            rows = sorted(group, key=prompts.__getitem__)
            yield from (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limit: int,
        choosing: Callable[[Tensor], LogitsProcessorList],
        *,
        streamer: BaseStreamer | None = None,
        stopping: Sequence[StoppingCriteria] = (),
    ) -> Tensor:
        """Return the tokens generated after B ``prompts``, shape (B, at most ``limit``), padded at the end.

        ``choosing`` makes the logits processors from the attention mask (B, T) of the prompts, which is 0 on padding;
        the largest logit after them is the next token.
        """
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        lengths = torch.tensor([[len(prompt)] for prompt in prompts])
        mask = (torch.arange(width) >= width - lengths).long()  # (B, width), padded at the front
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        config = GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(self.stop_tokens) or None,
            pad_token_id=self.pad,
        )
        with for_generation(self.model):
            output: Tensor = self.model.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=choosing(mask),
                stopping_criteria=StoppingCriteriaList(stopping),
                streamer=streamer,
                synced_gpus=self.in_step,
            )
        return output[:, width:]


@contextmanager
def for_generation(model: Any) -> Iterator[None]:
    """Switch the model to evaluation, with an empty generation config; restore both afterwards.

    ``generate`` fills every option left out from the model's generation config; an empty one adds nothing.
    """
    flags, training = model.generation_config, [module for module in model.modules() if module.training]
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = flags
        for module in training:
            module.training = True
