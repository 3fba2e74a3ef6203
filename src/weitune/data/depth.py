"""Values that are nested too deeply for what comes after reading.

Templates and writers of JSON call themselves level by level, and Python allows about a thousand calls.
"""

from __future__ import annotations

from typing import Any

DEEPEST = 200
"""Levels of objects and lists in one value."""


def too_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Tell whether ``value`` has more than ``levels`` levels of objects and lists. Cost: one visit to each of them."""
    layer = [value] if isinstance(value, dict | list | tuple) else []
    for _ in range(levels):
        layer = [
            inner
            for holder in layer
            for inner in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(inner, dict | list | tuple)
        ]
        if not layer:
            return False
    return True
