"""Values that are nested too deeply for what comes after reading.

Templates and writers of JSON call themselves level by level, and Python allows about a thousand calls.
"""

from __future__ import annotations

from typing import Any

DEEPEST = 200
"""Levels of objects and lists in one value."""
_HOLDERS = frozenset({dict, list, tuple})


def too_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Tell whether ``value`` has more than ``levels`` levels of objects and lists. Cost: one visit to each of them."""
    layer = [value] if type(value) in _HOLDERS else []
    for _ in range(levels):
        layer = [
            inner
            for holder in layer
            for inner in (holder.values() if type(holder) is dict else holder)
            if type(inner) in _HOLDERS
        ]
        if not layer:
            return False
    return True
