"""What ``response_format`` of the OpenAI protocol asks for: the same in requests to the server and from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.errors import InputError
from weitune.generate.constrain.schema import ANY_OBJECT


def schema_of(response_format: Any) -> Mapping[str, Any] | None:
    """Return the JSON schema that answers must fit; None if any text will do.

    {"type": "text"}, or None                               any text
    {"type": "json_object"}                                 a JSON object
    {"type": "json_schema", "json_schema": {"schema": {}}}  JSON that fits the schema

    Raises InputError for anything else. Whether answers can be kept to the schema is not checked here.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    given = response_format.get("json_schema") if kind == "json_schema" else None
    schema = given.get("schema", {}) if isinstance(given, Mapping) else None
    if not isinstance(schema, Mapping):
        raise InputError("generate.response_format.unknown")
    return schema


def response_format_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``response_format`` that asks for JSON that fits ``schema``."""
    if schema == ANY_OBJECT:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}
