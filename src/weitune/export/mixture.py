"""How adapters are combined. Imports nothing of weight, so that options can list the methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["linear", "cat", "svd", "ties", "dare"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Mixture:
    """How adapters are combined."""

    method: Method = "linear"
    weights: Sequence[float] = ()
    """One for each adapter; if there are none, each counts 1 / count."""
    density: float = 0.5
    """Fraction of the entries that ``ties`` and ``dare`` keep."""
    seed: int = 42
    """Determines which entries ``dare`` drops."""
