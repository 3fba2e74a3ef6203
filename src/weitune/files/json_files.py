"""JSON as weitune writes it to files: UTF-8, the same bytes every time.

A string may hold half of a surrogate pair, from an escape in somebody's JSON or from a file name that is not UTF-8.
UTF-8 cannot encode it, so it is written as an escape; everything else is written as it is. Messages are written in
English, whatever the language of the user, since programs read the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from weitune.messages import in_english

T = TypeVar("T")
_HALF = re.compile("[\ud800-\udfff]")


def json_text(value: Any, **options: Any) -> str:
    """Return ``value`` as JSON, as ``json.dumps(value, ensure_ascii=False, **options)`` does for any ``options``."""
    text = json.dumps(in_english(value), ensure_ascii=False, **options)
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def json_bytes(value: Any, *, indent: int = 2, **options: Any) -> bytes:
    """Return the contents of a JSON file: indented, with a line break at the end."""
    return (json_text(value, indent=indent, **options) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to the file ``path``."""
    path.write_bytes(json_bytes(value))


def record_from(kind: type[T], tree: Mapping[str, Any]) -> T:
    """Return a dataclass of the values in ``tree``, ignoring keys that it has no fields for.

    Raises TypeError if a field without a default is missing.
    """
    return kind(**{field.name: tree[field.name] for field in fields(kind) if field.name in tree})  # type: ignore[arg-type]


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file ``path``; an empty one if the file has none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of everything in ``tree`` that is not an object itself."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
