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


def shape(kind: str, **properties: Any) -> dict[str, Any]:
    """Return a class of a union as pydantic writes it: ``kind`` tells the classes apart."""
    return {"type": "object", "properties": {"kind": {"const": kind, "type": "string"}, **properties},
            "required": ["kind", *properties]}  # fmt: skip


def test_one_of_what_cannot_both_fit_is_kept_to() -> None:
    circle, square = shape("circle", radius={"type": "number"}), shape("square", side={"type": "number"})
    union = {"oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}],
             "discriminator": {"propertyName": "kind", "mapping": {"circle": "#/$defs/circle"}},
             "$defs": {"circle": circle, "square": square}}  # fmt: skip
    rule = JsonRule(
        {"type": "object", "properties": {"shape": union}, "required": ["shape"]} | {"$defs": union["$defs"]}
    )
    assert rule.fits('{"shape": {"kind": "circle", "radius": 2}}')
    assert not rule.fits('{"shape": {"kind": "circle", "side": 2}}')
    rule = JsonRule({"oneOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": {"type": "integer"}}]})
    assert all(rule.fits(text) for text in ('"a"', "null", "[1, 2]"))
    assert not rule.fits("1")


@pytest.mark.parametrize(
    "options",
    [[{"type": "integer"}, {"type": "number"}], [{"type": "string"}, {"enum": ["a", 1]}],
     [{"type": "object"}, shape("circle")], [{"minimum": 1, "type": "integer"}, {"maximum": 5, "type": "integer"}]],
)  # fmt: skip
def test_one_of_what_can_both_fit_is_refused(options: Any) -> None:
    with pytest.raises(InputError, match="the alternatives of a oneOf can both fit") as error:
        JsonRule({"oneOf": options})
    assert "anyOf" in error.value.fix


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
