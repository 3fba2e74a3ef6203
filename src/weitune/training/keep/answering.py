"""A model that answers prompts as it stands before its first step, and tells its probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from weitune.data.conversation import Alternatives, Example
from weitune.data.pad import pad
from weitune.generate.engine import Engine
from weitune.generate.sampling import Sampling
from weitune.model.batch import to_tensors
from weitune.model.fast.attention import tree_attention
from weitune.model.fast.loss import CHUNK_LOGITS
from weitune.model.supervised import state_logits
from weitune.training.inputs import RunInputs
from weitune.training.keep.candidates import answered

if TYPE_CHECKING:
    from weitune.training.trainable import Trainable

CHOICES = 32
"""The likeliest tokens that ``keep.target: distill`` keeps of each prediction; the others are kept as one. They have
95 % of the probability in Qwen2.5-0.5B's own answers (8 have 90 %)."""


class Answering:
    """The model as it stands before its first step, answering greedily and telling its probabilities."""

    def __init__(self, inputs: RunInputs, trainable: Trainable, max_answer_tokens: int) -> None:
        model, sharded = trainable.trained.model, trainable.loaded.shards > 1
        self._engine = Engine(model, inputs.tokenizer, inputs.framing, in_step=sharded)
        self._end = inputs.framing.end_of_turn
        self._sampling = Sampling(max_new_tokens=max_answer_tokens)

    def __call__(self, prompts: Sequence[Sequence[int]], learned: Callable[[int], object]) -> list[Example]:
        """Return the prompts with their answers; the end of the turn is learned where an answer ends.

        ``learned`` is called with the learned tokens of each answer as soon as it is finished.
        """
        examples: dict[int, Example] = {}
        with tree_attention(self._engine.model, on=False):
            for at, answer in self._engine.finished(prompts, self._sampling):
                examples[at] = answered(prompts[at], (*answer.tokens, self._end) if answer.stopped else answer.tokens)
                learned(examples[at].supervised if answer.stopped else 0)
        return [examples[at] for at in range(len(prompts))]

    def ended(self, example: Example) -> bool:
        """Return whether ``example`` teaches the end of a turn: an answer that was cut does not."""
        return example.input_ids[-1] == self._end

    def distilled(self, examples: Sequence[Example]) -> list[Example]:
        """Return ``examples`` with the model's own likeliest tokens in place of each that is learned."""
        by_length = sorted(range(len(examples)), key=lambda number: len(examples[number].input_ids))
        most = max(1, CHUNK_LOGITS // self._engine.model.config.get_text_config().vocab_size)
        softened = list(examples)
        while by_length:
            some = [by_length.pop(0)]
            while by_length and sum(examples[number].supervised for number in (*some, by_length[0])) <= most:
                some.append(by_length.pop(0))
            alternatives = self._alternatives([examples[number] for number in some])
            for number in some:
                own = tuple(alternatives[: examples[number].supervised])
                del alternatives[: len(own)]
                softened[number] = replace(examples[number], alternatives=own)
        return softened

    @torch.inference_mode()
    def _alternatives(self, examples: Sequence[Example]) -> list[Alternatives]:
        """Return the alternatives of every learned token of ``examples``, in order."""
        model = self._engine.model
        model.eval()
        with tree_attention(model, on=False):
            logits = state_logits(model, to_tensors(pad(examples), model.device))
        shares, tokens = logits.float().softmax(-1).topk(min(CHOICES, logits.shape[-1]))
        return [tuple(zip(*both, strict=True)) for both in zip(tokens.tolist(), shares.tolist(), strict=True)]
