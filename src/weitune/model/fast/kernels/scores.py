"""What differs between families of models in the formula of softmax attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The score of query i and key j of head h is f(scaling · qᵢ·kⱼ), and its weight in the sum of the values is

        exp(scoreᵢⱼ) / (exp(sinkₕ) + Σ over the seen keys k of exp(scoreᵢₖ))

    f(x) = cap · tanh(x / cap) with a cap (Gemma 2, arXiv 2408.00118), else x. A sink (Xiao et al., arXiv 2309.17453)
    takes part of the weight and has no value; without sinks exp(sinkₕ) is left out.
    """

    scaling: float | None = None
    """None: 1 / √D"""
    window: int | None = None
    """how many positions back a token sees, itself included; None: all"""
    cap: float | None = None
    sinks: Tensor | None = None
    """(H,)"""

    def scale(self, size: int) -> float:
        """Return the factor of the products of heads of ``size``."""
        return size**-0.5 if self.scaling is None else self.scaling

    def times(self, factor: float, size: int) -> Scores:
        """Return the scores of keys (of ``size`` D) that are multiplied by ``factor``."""
        return replace(self, scaling=self.scale(size) * factor)
