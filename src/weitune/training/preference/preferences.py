"""What a run learns from preferences: the recipe's method, and the reference that it compares with."""

from __future__ import annotations

from dataclasses import dataclass

from weitune.data.preference.reference import Reference
from weitune.recipe.preference import Preference


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a run learns from preferences."""

    preference: Preference
    max_length: int
    """``tokens.max_length``, for mismatched answers"""
    reference: Reference | None = None
