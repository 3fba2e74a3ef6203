"""Say in one line what is wrong with a recipe's key: where, what it must be, what it is.

    train.micro_tokens: must be a whole number or 'auto'; found 'lots'
    trian.epochs: unknown key; did you mean 'train.epochs'?

pydantic reports each branch of a union separately and adds the branch's name to the key; here they are one problem.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

from weitune.messages import joined, say

LONGEST_SHOWN = 60
"""Characters of a wrong value that a message repeats."""

_EXPECTED = {
    "int_type": "recipe.expected.whole_number",
    "int_parsing": "recipe.expected.whole_number",
    "int_parsing_size": "recipe.expected.smaller_whole_number",
    "int_from_float": "recipe.expected.whole_number",
    "float_type": "recipe.expected.number",
    "float_parsing": "recipe.expected.number",
    "finite_number": "recipe.expected.finite_number",
    "string_type": "recipe.expected.string",
    "bool_type": "recipe.expected.boolean",
    "bool_parsing": "recipe.expected.boolean",
    "list_type": "recipe.expected.list",
    "dict_type": "recipe.expected.group",
    "model_type": "recipe.expected.group",
    "model_attributes_type": "recipe.expected.group",
    "literal_error": "recipe.expected.choice",
    "greater_than": "recipe.expected.greater_than",
    "greater_than_equal": "recipe.expected.at_least",
    "less_than": "recipe.expected.less_than",
    "less_than_equal": "recipe.expected.at_most",
    "too_short": "recipe.expected.not_empty_list",
    "string_too_short": "recipe.expected.not_empty_string",
    "string_pattern_mismatch": "recipe.expected.range",
}
"""The message that says what a value must be, for each of pydantic's problem types that the declaration can cause."""
_KINDS = {
    type(None): "recipe.kind.nothing",
    str: "recipe.kind.string",
    list: "recipe.kind.list",
    bool: "recipe.kind.boolean",
    int: "recipe.kind.number",
    float: "recipe.kind.number",
}


def explain(problems: Sequence[Mapping[str, Any]], tree: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Return one line for each key that has a problem.

    ``problems`` are what ``ValidationError.errors()`` lists, ``tree`` is the value that was validated, and ``known``
    has the dotted names of all leaf keys.
    """
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    for problem in problems:
        by_key.setdefault(_key(problem, tree), []).append(problem)
    sentences = {key: _sentence(key, found, known) for key, found in by_key.items()}
    return [say("recipe.problems.of_key", key=key, said=said) if key else said for key, said in sentences.items()]


def kind(value: object) -> str:
    """Name the kind of a YAML value for a message."""
    return say(_KINDS[type(value)]) if type(value) in _KINDS else say("recipe.kind.other", name=type(value).__name__)


def _key(problem: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    """Return the dotted key of a problem, without what pydantic adds for the branch of a union.

    A part belongs to the key if the value that was validated has it; the last part of a missing key does, too.
    """
    parts: list[str] = []
    here: Any = tree
    for depth, part in enumerate(problem["loc"], start=1):
        if part in here if isinstance(here, Mapping) else isinstance(here, list) and part in range(len(here)):
            here = here[part]
        elif problem["type"] != "missing" or depth < len(problem["loc"]):
            continue
        parts.append(str(part))
    return ".".join(parts)


def _sentence(key: str, problems: Sequence[Mapping[str, Any]], known: Collection[str]) -> str:
    types = {problem["type"] for problem in problems}
    found = problems[0]["input"]
    if "extra_forbidden" in types:
        return _unknown(key, known)
    if "missing" in types:
        return say("recipe.problems.missing")
    if "invalid_key" in types:
        return say("recipe.problems.key_not_a_string")
    said = [str(problem["ctx"]["error"]) for problem in problems if problem["type"] == "value_error"]
    if said and isinstance(found, Mapping):  # keys that do not go together: the message names them
        return joined("; ", said)
    if expected := _expected(problems):
        said.append(say("recipe.problems.must_be", expected=expected))
    # YAML reads `no`, `3` and `2024-01-01` as something else than a string.
    lacks_quotes = types == {"string_type"} and not isinstance(found, list | dict | None)
    values = {"said": joined("; ", said), "value": _shown(found)}
    return say("recipe.problems.lacks_quotes", **values) if lacks_quotes else say("recipe.problems.found", **values)


def _expected(problems: Sequence[Mapping[str, Any]]) -> str:
    """Return what the value may be, each alternative once, in the order of the declaration; "" if nothing says it."""
    alternatives: dict[str, None] = {}
    for problem in problems:
        if problem["type"] in _EXPECTED:
            limits = {name: _plain(limit) for name, limit in problem.get("ctx", {}).items()}
            if problem["type"] == "literal_error":
                limits["expected"] = _choices(limits["expected"])
            alternatives[say(_EXPECTED[problem["type"]], **limits)] = None
        elif problem["type"] != "value_error":
            alternatives[problem["msg"]] = None
    if not alternatives:
        return ""
    return reduce(lambda first, second: say("recipe.problems.or", first=first, second=second), alternatives)


def _unknown(key: str, known: Collection[str]) -> str:
    """Say that there is no ``key``, and which one may be meant."""
    if key in known:  # a dotted name where YAML wants a group
        section, name = key.rsplit(".", 1)
        return say("recipe.problems.dotted_key", name=name, section=section)
    names = [*known, *sorted({name.rsplit(".", 1)[0] for name in known if "." in name})]
    last = key.rsplit(".", 1)[-1]
    same = [name for name in known if name.rsplit(".", 1)[-1] == last]  # the right word in the wrong place
    near = [*same, *difflib.get_close_matches(key, names, n=1, cutoff=0.5)]
    return say("recipe.problems.unknown_key_near", near=near[0]) if near else say("recipe.problems.unknown_key")


def _choices(expected: object) -> str:
    """Return the values that pydantic joins as ``'drop', 'cut' or 'error'`` in the user's language."""
    first, _, last = str(expected).rpartition(" or ")
    return say("recipe.expected.one_of", first=first, last=last) if first else last


def _plain(limit: object) -> object:
    """Write a bound such as 1.0 as 1."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _shown(value: object) -> str:
    if value is None:
        return say("recipe.kind.nothing")
    text = repr(value) if isinstance(value, str | bool | int | float | list | dict) else f"'{value}'"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
