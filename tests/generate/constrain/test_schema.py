"""JSON schemas: what fits, what is refused with the reason, and that none takes long."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("llguidance")

from weitune.errors import InputError, MissingExtraError
from weitune.generate.constrain.schema import ANY_OBJECT, JsonRule


def test_what_fits() -> None:
    rule = JsonRule({"type": "object", "properties": {"port": {"type": "string"}, "hours": {"type": "integer"}},
                     "required": ["port"], "additionalProperties": False})  # fmt: skip
    assert rule.fits(json.dumps({"port": "布雷斯特\n", "hours": 3}, ensure_ascii=False))
    assert rule.fits('{"port": ""}')
    for text in ("", "{}", '{"port": 3}', '{"port": "a"', '{"port": "a"} ', '{"port": "a", "x": 1}', '{"port":\n"a"}'):
        assert not rule.fits(text)
    assert JsonRule(ANY_OBJECT).fits('{"a": [1, {"b": null}]}')
    assert not JsonRule(ANY_OBJECT).fits("[]")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [({"type": "strin"}, "Invalid type"), ({"$ref": "#/$defs/x"}, "does not exist"), ({"enum": []}, "Unsatisfiable"),
     ({"type": "string", "minLength": 3, "maxLength": 2}, "Unsatisfiable"), ({"$ref": "#"}, ""),
     ({"not": {"type": "string"}}, "not"), ({"type": "array", "uniqueItems": True}, "uniqueItems"),
     ({"type": "object", "properties": {}, "additionalProperties": False, "required": ["z"]}, "required property 'z'"),
     ({"type": "string", "pattern": "(?=a)b"}, "regex"), ({"$ref": "http://127.0.0.1/x"}, "not present"),
     ({"x": float("nan")}, ""), ({"enum": ["x" * 33_000]}, "bytes")],
)  # fmt: skip
def test_impossible_schemas_are_refused_with_the_reason(schema: Any, reason: str) -> None:
    with pytest.raises(InputError, match="JSON schema") as error:
        JsonRule(schema)
    assert reason in error.value.message


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: Any = {"type": "string"}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(InputError):
        JsonRule(schema)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="llguidance"):
        JsonRule(ANY_OBJECT)
