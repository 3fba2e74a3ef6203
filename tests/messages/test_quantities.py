"""Sizes and durations as people read them."""

from __future__ import annotations

from weitune.messages.quantities import duration_text, memory_text, size_text


def test_durations() -> None:
    assert [duration_text(s) for s in (42, 100, 660, 5580)] == ["42 s", "1 min 40 s", "11 min 0 s", "1 h 33 min"]


def test_sizes_on_disk_are_in_powers_of_1000() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 98_400_000)] == ["0 bytes", "999 bytes", "1.0 kB", "98.4 MB"]
    assert size_text(4_330_000_000, digits=2) == "4.33 GB"


def test_sizes_in_memory_are_in_powers_of_1024() -> None:
    assert [memory_text(n) for n in (1 << 20, 1 << 29, 3 << 30)] == ["1 MiB", "0.5 GiB", "3.0 GiB"]
