"""Random JSON schemas, some of which cannot be kept to, and what fits them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "port", "名字", 'odd "name"'])
SCHEMAS: Any = st.recursive(
    st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": -5, "maximum": 12}, {"type": "number"},
         {"type": "string", "maxLength": 4}, {"enum": ["a", 3, None]}, {"const": {"a": [1]}}, {"type": "strin"},
         {"type": "string", "pattern": "^[a-c]{2,3}$"}, {"not": {}}]
    ),
    lambda inner: st.builds(
        lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 3)
    )
    | st.builds(
        lambda properties, more: {
            "type": "object", "properties": properties, "required": sorted(properties)[:2], "additionalProperties": more
        },
        st.dictionaries(NAMES, inner, max_size=3), st.just(False),
    )
    | st.builds(lambda kind, options: {kind: options}, st.sampled_from(["anyOf", "oneOf"]),
                st.lists(inner, min_size=1, max_size=3)),
    max_leaves=5,
)  # fmt: skip


def fits(value: Any, schema: dict[str, Any]) -> bool:  # noqa: PLR0911
    """Return whether ``value`` fits a schema of SCHEMAS: the specification, without llguidance."""
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    if "oneOf" in schema:
        return sum(fits(value, option) for option in schema["oneOf"]) == 1
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kinds = {"boolean": bool, "null": type(None), "integer": int, "number": (int, float), "string": str, "array": list,
             "object": dict}  # fmt: skip
    kind = schema["type"]
    if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if kind == "integer":
        return bool(schema["minimum"] <= value <= schema["maximum"])
    if kind == "string":
        return len(value) <= schema.get("maxLength", 3) and ("maxLength" in schema or set(value) <= set("abc"))
    if kind == "array":
        return len(value) <= schema["maxItems"] and all(fits(item, schema["items"]) for item in value)
    if kind == "object":
        known = set(value) <= set(schema["properties"]) and set(schema["required"]) <= set(value)
        return known and all(fits(item, schema["properties"][key]) for key, item in value.items())
    return True


def is_refused(schema: dict[str, Any]) -> bool:
    """Return whether a schema of SCHEMAS may be refused: it has a part that cannot be kept to, or perhaps not."""
    text = json.dumps(schema)
    return any(part in text for part in ('strin"', '"not"', '"oneOf"'))
