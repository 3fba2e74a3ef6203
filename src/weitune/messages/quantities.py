"""Sizes and durations as people read them."""

from __future__ import annotations

from weitune.messages import say

_DISK_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_GIB, _MIB = 1 << 30, 1 << 20


def size_text(count: int, digits: int = 1) -> str:
    """Return a size on disk, in powers of 1000: ``98.4 MB``."""
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_DISK_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return say("messages.size.bytes", count=count) if unit == 0 else f"{size:.{digits}f} {_DISK_UNITS[unit]}"


def memory_text(count: float, digits: int = 1) -> str:
    """Return a size in memory, in powers of 1024: ``4.3 GiB``, or ``512 MiB`` below half a GiB."""
    return f"{count / _GIB:,.{digits}f} GiB" if count >= _GIB / 2 else f"{count / _MIB:,.0f} MiB"


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units: ``1 h 5 min``, ``3 min 20 s``, ``42 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return say("messages.duration.hours", hours=hours, minutes=minutes)
    if minutes:
        return say("messages.duration.minutes", minutes=minutes, seconds=rest)
    return say("messages.duration.seconds", seconds=rest)
