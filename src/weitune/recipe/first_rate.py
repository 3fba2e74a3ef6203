"""A first learning rate, for ``train.learning_rate: auto`` and as the middle of a search.

    rate = 5e-4 · (2048 / width) ^ 0.78 · max(1, sqrt(100 / steps)) / max(1, passes) · 32 / (alpha · plus_ratio)

The first two factors are a rate for adapters of wide models and its fall with the width of the hidden states (Schulman
et al., "LoRA Without Regret", 2025: fourteen Llama and Qwen models). A short run needs more, since B begins at 0; rows
that are learned several times need less, or the run overfits. Both are our own, fitted to runs of 6 to 60 steps, whose
best rates were 0.6 to 1.6 times as high (docs/lab/judging.md). The last factor follows from how an adapter begins: what
its first steps change is in proportion to alpha times B's rate. The rank does not matter, but for rank stabilisation,
which makes alpha count sqrt(r) times. A whole model gets a tenth, which is that study's ratio, and no more for a short
run.
"""

from __future__ import annotations

import math

from weitune.recipe.schema import Recipe

_RATE, _WIDTH, _POWER = 5e-4, 2048, 0.78
LONG = 100
"""Steps from which a run is long."""
_ALPHA = 32
_WHOLE_MODEL = 0.1
HIGHEST = 5e-3
"""Near the highest rate that was the best of a search, for an adapter of alpha 32."""


def first_rate(
    width: int, steps: int, passes: float = 1.0, *, strength: float = 1.0, whole_model: bool = False
) -> float:
    """Return a learning rate, with two digits, for a model whose hidden states have ``width`` numbers.

    The run has ``steps`` and learns its rows ``passes`` times. ``strength`` is how many times an adapter of alpha 32
    the adapter counts (:func:`strength_of`).
    """
    rate = _RATE * (_WIDTH / width) ** _POWER / max(1.0, passes)
    rate *= _WHOLE_MODEL if whole_model else more_for_short(steps)
    return float(f"{min(rate, HIGHEST) / strength:.1e}")


def more_for_short(steps: int) -> float:
    """Return how many times a long run's rate an adapter needs in a run of ``steps``."""
    return max(1.0, math.sqrt(LONG / steps))


def first_rate_of(recipe: Recipe, width: int, steps: int, steps_per_epoch: int) -> float:
    """Return the first rate of a run of ``recipe`` on a model of ``width``."""
    passes = steps / steps_per_epoch
    return first_rate(width, steps, passes, strength=strength_of(recipe), whole_model=recipe.adapter is None)


def strength_of(recipe: Recipe) -> float:
    """Return how many times the adapter of ``recipe`` counts at the beginning, compared with one of alpha 32."""
    lora = recipe.adapter
    if lora is None:
        return 1.0
    return lora.alpha * lora.plus_ratio * (math.sqrt(lora.r) if lora.rslora else 1.0) / _ALPHA
