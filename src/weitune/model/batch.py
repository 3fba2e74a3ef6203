"""A batch as tensors on the model's device: B rows of T tokens with N supervised predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.data.answers import AnswerBatch
from weitune.data.conversation import OTHERS
from weitune.data.pack import PackedBatch
from weitune.data.pad import PaddedBatch
from weitune.model.fast.tree import Tree

ANSWERS = 32
"""Padding makes the answers of a row a multiple of this."""
ALTERNATIVES = 16
"""Times as many predictions are padded where states predict dozens of tokens: so there are as few shapes."""


@dataclass(frozen=True, slots=True, eq=False)
class AnswerTensors:
    """The answers of a batch of groups (:class:`.AnswerBatch`): S answers that M predictions make up."""

    prediction: Tensor
    """(M,) indices of predictions, answer by answer"""
    ends: Tensor
    """(S + 1,) where each answer begins in ``prediction``, and the last one ends"""
    lengths: Tensor
    """(S,) learned tokens, float64, at least 1"""
    liked: Tensor
    """(S,) bool"""
    reference: Tensor
    """(S,) log-probabilities before the first step, float64"""
    coefficient: Tensor
    """(S,) of the group's term in the loss, float64"""
    sft: Tensor
    """(S,) of the answer's own cross entropy in the loss, float64"""
    shift: Tensor
    """() z of KTO, float64"""

    def sums(self, log_probs: Tensor) -> Tensor:
        """Return the log-probability of every answer, (S,) in float64, from those of the predictions (N,).

        Sums of segments, unlike sums by index, give the same bits every time on a GPU, too.
        """
        terms = log_probs.to(self.prediction.device)[self.prediction].double()
        return torch.segment_reduce(terms, "sum", offsets=self.ends, unsafe=True)  # unsafe: does not wait to look

    def rounded_up(self, members: int, answers: int) -> AnswerTensors:
        """Pad M to a multiple of ``members``, and S by at least one to a multiple of ``answers``.

        The padding is answers whose coefficients are 0; the first of them has all predictions that are added.
        """
        more, spare = -len(self.prediction) % members, answers - len(self.liked) % answers
        ends = torch.cat([self.ends, (self.ends[-1] + more).expand(spare)])
        return AnswerTensors(
            prediction=F.pad(self.prediction, (0, more)),
            ends=ends,
            lengths=F.pad(self.lengths, (0, spare), value=1.0),
            liked=F.pad(self.liked, (0, spare)),
            reference=F.pad(self.reference, (0, spare)),
            coefficient=F.pad(self.coefficient, (0, spare)),
            sft=F.pad(self.sft, (0, spare)),
            shift=self.shift,
        )

    def to(self, device: torch.device) -> AnswerTensors:
        """Copy the answers to ``device``."""
        return AnswerTensors(**{name: getattr(self, name).to(device, copy=True) for name in self.__slots__})

    @property
    def tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.__slots__]


@dataclass(frozen=True, slots=True, eq=False)
class _Tensors:
    input_ids: Tensor
    """(B, T)"""
    rows: Tensor
    """(U,) the positions that predict, each once, as indices into the B·T positions"""
    index: Tensor
    """(N,) index into ``rows`` of the position that makes each prediction, ascending but for groups of answers"""
    targets: Tensor
    """(N,) tokens; -1 (``OTHERS``): any token that no other prediction of the position names"""
    weights: Tensor
    """(N,)"""


@dataclass(frozen=True, slots=True, eq=False)
class PaddedTensors(_Tensors):
    """The examples of a batch, one a row, padded to the longest."""

    attention_mask: Tensor
    """(B, T)"""
    answers: AnswerTensors | None = None
    others: bool = False
    """Whether a target is ``OTHERS``"""

    def rounded_up(self, tokens: int, predictions: int) -> PaddedTensors:
        """Return the batch unchanged: the sizes of a padded batch are not rounded."""
        return self

    def inputs(self) -> dict[str, object]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "use_cache": False}


@dataclass(frozen=True, slots=True, eq=False)
class PackedTensors(_Tensors):
    """One packed row: B = 1."""

    tree: Tree
    answers: AnswerTensors | None = None
    others: bool = False
    """Whether a target is ``OTHERS``"""

    def rounded_up(self, tokens: int, predictions: int) -> PackedTensors:
        """Pad T to a multiple of ``tokens``, and N and, as far as there are tokens, U to multiples of ``predictions``.

        The padding is isolated tokens and predictions of weight 0: loss and gradients are unchanged. Answers are padded
        too, by at least one, so that the shapes of their tensors are few.
        """
        tree = self.tree.rounded_up(tokens)
        length = len(tree.subtree_end)
        idle = torch.ones(length, dtype=torch.bool, device=self.rows.device).index_fill_(0, self.rows, False)
        rows = torch.cat([self.rows, idle.nonzero()[: -len(self.rows) % predictions, 0]])
        more = -len(self.targets) % (predictions * ALTERNATIVES if self.others else predictions)
        targets, weights = (F.pad(x, (0, more)) for x in (self.targets, self.weights))
        index = F.pad(self.index, (0, more), value=len(rows) - 1)  # in order
        input_ids = F.pad(self.input_ids, (0, length - self.input_ids.shape[1]))
        answers = None if self.answers is None else self.answers.rounded_up(predictions, ANSWERS)
        return PackedTensors(input_ids, rows, index, targets, weights, tree, answers, self.others)

    @property
    def _row(self) -> list[Tensor]:
        shape = self.tree.position_ids, self.tree.subtree_end
        return [self.input_ids, self.rows, self.index, self.targets, self.weights, *shape]

    @property
    def tensors(self) -> list[Tensor]:
        return self._row if self.answers is None else [*self._row, *self.answers.tensors]

    def to(self, device: torch.device) -> PackedTensors:
        """Copy the row to ``device``, without the cached masks of its tree."""
        answers = None if self.answers is None else self.answers.to(device)
        tensors = (tensor.to(device, copy=True) for tensor in self._row)
        input_ids, rows, index, targets, weights, position_ids, subtree_end = tensors
        tree = Tree(position_ids, subtree_end)
        return PackedTensors(input_ids, rows, index, targets, weights, tree, answers, self.others)

    def inputs(self) -> dict[str, object]:
        """Return the keyword arguments for the model's forward. With a cache, tokens would see other branches."""
        position_ids = self.tree.position_ids[None]
        return {"input_ids": self.input_ids, "position_ids": position_ids, "tree": self.tree, "use_cache": False}


TensorBatch = PackedTensors | PaddedTensors


@overload
def to_tensors(batch: PackedBatch, device: torch.device) -> PackedTensors: ...


@overload
def to_tensors(batch: PackedBatch | PaddedBatch, device: torch.device) -> TensorBatch: ...


def to_tensors(batch: PackedBatch | PaddedBatch, device: torch.device) -> TensorBatch:
    """Copy ``batch`` to ``device``."""
    distinct, position = np.unique(batch.rows, return_inverse=True)
    input_ids, rows, index, targets, weights = (
        torch.from_numpy(array).to(device)
        for array in (batch.input_ids, distinct, position, batch.targets, batch.weights)
    )
    answers = None if batch.answers is None else answer_tensors(batch.answers, device)
    others = bool((batch.targets == OTHERS).any())
    if isinstance(batch, PaddedBatch):
        mask = torch.from_numpy(batch.attention_mask).to(device)
        return PaddedTensors(input_ids, rows, index, targets, weights, mask, answers, others)
    tree = Tree.from_batch(batch, device)
    return PackedTensors(input_ids[None], rows, index, targets, weights, tree, answers, others)


def answer_tensors(answers: AnswerBatch, device: torch.device) -> AnswerTensors:
    """Copy ``answers`` to ``device``."""
    return AnswerTensors(
        prediction=torch.from_numpy(answers.prediction).to(device),
        ends=torch.from_numpy(np.cumsum([0, *answers.lengths])).to(device),
        lengths=torch.from_numpy(answers.lengths).to(device).double(),
        liked=torch.from_numpy(answers.liked).to(device),
        reference=torch.from_numpy(answers.reference).to(device),
        coefficient=torch.from_numpy(answers.coefficient).to(device),
        sft=torch.from_numpy(answers.sft).to(device),
        shift=torch.tensor(answers.shift, dtype=torch.float64, device=device),
    )
