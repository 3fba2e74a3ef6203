"""The values of a GGUF file's metadata, with their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gguf import GGUFValueType


class Field(NamedTuple):
    """One value of a GGUF file; ``element`` is the type of an array's elements."""

    value: Any
    type: GGUFValueType
    element: GGUFValueType | None = None


Metadata = Mapping[str, Field]


def number(value: int) -> Field:
    """Return an unsigned 32-bit value."""
    return Field(int(value), GGUFValueType.UINT32)


def real(value: float) -> Field:
    """Return a 32-bit floating-point value."""
    return Field(float(value), GGUFValueType.FLOAT32)


def text(value: str) -> Field:
    """Return a string."""
    return Field(value, GGUFValueType.STRING)


def boolean(value: bool) -> Field:
    """Return a boolean."""
    return Field(value, GGUFValueType.BOOL)


def array(values: list[Any], element: GGUFValueType) -> Field:
    """Return an array of ``element``."""
    return Field(values, GGUFValueType.ARRAY, element)
