"""JSON that can always be written as UTF-8.

A name or a text may hold half of a surrogate pair: it stood in somebody's JSON as an escape, or in the name of a file
that is not UTF-8. Such a half has no UTF-8, so it stays an escape; everything else is written as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")


def json_text(value: Any, **options: Any) -> str:
    """Return ``value`` as JSON, as ``json.dumps(value, ensure_ascii=False, **options)`` does for any ``options``."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
