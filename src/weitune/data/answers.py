"""Which predictions of a batch make up which answer, and how each answer counts in the loss: plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class AnswerBatch:
    """S answers, in the order of their groups; the two of a pair are neighbours, the chosen one first.

    One prediction can belong to several answers, since it is computed once however many make it:

        answers:      S U A B end · S U A C end          predictions:   A  B  C  end (after B)  end (after C)
        prediction:   0 1 3 · 0 2 4                                     0  1  2  3              4
        lengths:      3 3

    The coefficients are divided already, by sums over the whole step on all devices: the loss of a batch is a sum.
    """

    prediction: Ints
    """(M,) indices of the predictions of the first answer, then of those of the second, and so on"""
    lengths: Ints
    """(S,) learned tokens of each answer; M in all"""
    liked: npt.NDArray[np.bool_]
    """(S,)"""
    reference: Floats
    """(S,) log-probability of each answer before the first step, in nats; 0 if it is not known"""
    coefficient: Floats
    """(S,) how much the term of an answer's group counts in the loss; the same for both answers of a pair"""
    sft: Floats
    """(S,) how much an answer's own cross entropy counts in the loss"""
    shift: float = 0.0
    """z of KTO, in nats"""

    @classmethod
    def of(cls, prediction: Sequence[int], lengths: Sequence[int], liked: Sequence[bool]) -> AnswerBatch:
        """Return answers that count nothing yet: reference and coefficients are 0."""
        count = len(lengths)
        return cls(
            prediction=np.asarray(prediction, dtype=np.int64),
            lengths=np.asarray(lengths, dtype=np.int64),
            liked=np.asarray(liked, dtype=np.bool_),
            reference=np.zeros(count),
            coefficient=np.zeros(count),
            sft=np.zeros(count),
        )
