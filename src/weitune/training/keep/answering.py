"""A model that answers prompts as it stands before its first step, and tells its probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from weitune.data.conversation import Example
from weitune.data.keep.kept import KeptExamples, Softened
from weitune.data.pad import pad
from weitune.generate.engine import Engine
from weitune.generate.sampling import Sampling
from weitune.model.batch import to_tensors
from weitune.model.fast.attention import tree_attention
from weitune.model.supervised import state_logits
from weitune.training.inputs import RunInputs
from weitune.training.keep.candidates import answered

if TYPE_CHECKING:
    from weitune.training.trainable import Trainable

CHOICES = 32
"""The likeliest tokens that ``keep.target: distill`` keeps of each prediction; the others are kept as one. They have
95 % of the probability in Qwen2.5-0.5B's own answers (8 have 90 %)."""
_MOST_LOGITS = 1 << 26
"""The most logits in memory at once."""


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

    def distilled(self, examples: Sequence[Example]) -> KeptExamples:
        """Return ``examples`` with the model's own likeliest tokens in place of each that is learned."""
        made: dict[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]] = {}
        for numbers in self._passes([len(example.inputs) for example in examples]):
            choices, shares = self._alternatives([examples[number] for number in numbers])
            ends = np.cumsum([examples[number].supervised for number in numbers])[:-1]
            made |= zip(numbers, zip(np.split(choices, ends), np.split(shares, ends), strict=True), strict=True)
        choices, shares = (np.concatenate(part) for part in zip(*(made[i] for i in range(len(examples))), strict=True))
        return KeptExamples(examples, Softened(choices, shares))

    def _passes(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield numbers of examples of similar length whose logits, padding included, are at most _MOST_LOGITS."""
        most = _MOST_LOGITS // int(self._engine.model.config.get_text_config().vocab_size)
        some: list[int] = []
        for number in sorted(range(len(lengths)), key=lengths.__getitem__):
            if some and (len(some) + 1) * lengths[number] > most:
                yield some
                some = []
            some.append(number)
        yield some

    @torch.inference_mode()
    def _alternatives(self, examples: Sequence[Example]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return the likeliest tokens in place of every learned token of ``examples``, and how likely they are."""
        model = self._engine.model
        model.eval()
        with tree_attention(model, on=False):
            logits = state_logits(model, to_tensors(pad(examples), model.device))
        shares, tokens = logits.float().softmax(-1).topk(min(CHOICES, logits.shape[-1]))
        return tokens.int().cpu().numpy(), shares.cpu().numpy()
