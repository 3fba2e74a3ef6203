"""The response formats of the protocol, and back."""

from __future__ import annotations

from typing import Any

import pytest

from weitune.errors import InputError
from weitune.generate.constrain.response_format import response_format_of, schema_of
from weitune.generate.constrain.schema import ANY_OBJECT


@pytest.mark.parametrize(
    ("form", "schema"),
    [(None, None), ({"type": "text"}, None), ({"type": "json_object"}, ANY_OBJECT),
     ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1]}}}, {"enum": [1]}),
     ({"type": "json_schema", "json_schema": {"name": "x"}}, {})],
)  # fmt: skip
def test_formats(form: Any, schema: Any) -> None:
    assert schema_of(form) == schema
    if schema is not None:
        assert schema_of(response_format_of(schema)) == schema


@pytest.mark.parametrize(
    "form",
    [5, "json_object", {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": 1},
     {"type": "json_schema", "json_schema": {"schema": [1]}}],
)  # fmt: skip
def test_other_formats_are_refused(form: Any) -> None:
    with pytest.raises(InputError, match="response_format must be of type"):
        schema_of(form)
