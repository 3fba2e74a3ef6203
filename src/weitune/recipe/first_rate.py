"""A first learning rate, for ``train.learning_rate: auto``: good enough to begin with, and no search.

    rate = 5e-4 · (2048 / width) ^ 0.78 · max(1, sqrt(100 / steps)) · 32 / (alpha · plus_ratio)

The first two factors are a rate for adapters of wide models and its fall with the width of the hidden states (Schulman
et al., "LoRA Without Regret", 2025: fourteen models from 1 to 70 billion parameters). The third is our own, fitted to
searches of 6 to 60 steps on models 576 to 896 wide (docs/lab/judging.md): a short run needs more, since B begins at 0.
The last follows from how an adapter begins: what its first steps change is in proportion to alpha times B's rate; the
rank does not matter, but for rank stabilisation, which makes alpha count sqrt(r) times. A whole model gets a tenth,
which is that study's ratio.
"""

from __future__ import annotations

import math

from weitune.recipe.schema import Recipe

_RATE, _WIDTH, _POWER = 5e-4, 2048, 0.78
_LONG = 100
"""Steps from which a run is long."""
_ALPHA = 32
_WHOLE_MODEL = 0.1
HIGHEST = 5e-3
"""The highest rate that was the best of a search."""


def first_rate(width: int, steps: int, *, strength: float = 1.0, whole_model: bool = False) -> float:
    """Return a learning rate, with two digits, for a run of ``steps`` on a model whose hidden states have ``width``.

    ``strength`` is how many times an adapter of alpha 32 counts (:func:`strength_of`).
    """
    rate = _RATE * (_WIDTH / width) ** _POWER * max(1.0, math.sqrt(_LONG / steps))
    return float(f"{min(rate, HIGHEST) * (_WHOLE_MODEL if whole_model else 1 / strength):.1e}")


def strength_of(recipe: Recipe) -> float:
    """Return how many times the adapter of ``recipe`` counts at the beginning, compared with one of alpha 32."""
    lora = recipe.adapter
    if lora is None:
        return 1.0
    return lora.alpha * lora.plus_ratio * (math.sqrt(lora.r) if lora.rslora else 1.0) / _ALPHA
