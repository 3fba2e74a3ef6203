"""Say in one line what is wrong with a recipe's key: where, what it must be, what it is.

    train.micro_tokens: must be a whole number or 'auto'; found 'lots'
    trian.epochs: unknown key; did you mean 'train.epochs'?

pydantic reports each branch of a union apart and puts the branch's name into the key; here they are one problem again.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

LONGEST_SHOWN = 60
"""Characters of a wrong value that a message repeats."""

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "a group of keys",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list with at least {min_length} entry",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a number or a range of numbers, such as 0-7",
}
"""What a value must be, for each of pydantic's problem types that the declaration can cause."""


def explain(problems: Sequence[Mapping[str, Any]], tree: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Return one line for each key that has a problem.

    ``problems`` are what ``ValidationError.errors()`` lists, ``tree`` is the value that was validated, and ``known``
    has the dotted names of all leaf keys.
    """
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    for problem in problems:
        by_key.setdefault(_key(problem, tree), []).append(problem)
    return [f"{key}: {_sentence(key, found, known)}".removeprefix(": ") for key, found in by_key.items()]


def kind(value: object) -> str:
    """Name the kind of a YAML value in the words of the messages."""
    names = {type(None): "nothing", str: "a text", list: "a list", bool: "a truth value", int: "a number"}
    return names.get(type(value), "a number" if isinstance(value, float) else f"a {type(value).__name__}")


def _key(problem: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    """Return the dotted key of a problem, without what pydantic adds for the branch of a union.

    A part is real when the value that was validated has it; the last part of a missing key is real, too.
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
        return f"unknown key{_nearest(key, known)}"
    if "missing" in types:
        return "missing, and has no default"
    if "invalid_key" in types:
        return "a key must be a text; put it in quotes"
    said = [str(problem["ctx"]["error"]) for problem in problems if problem["type"] == "value_error"]
    if said and isinstance(found, Mapping):  # keys that do not go together: the message names them
        return "; ".join(said)
    said += [f"must be {' or '.join(wanted)}" for wanted in [_expected(problems)] if wanted]
    # YAML reads `no`, `3` and `2024-01-01` as something else than text.
    quotes = " (put it in quotes)" if types == {"string_type"} and not isinstance(found, list | dict | None) else ""
    return f"{'; '.join(said)}; found {_shown(found)}{quotes}"


def _expected(problems: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the value may be, once each, in the order of the declaration."""
    wanted = []
    for problem in problems:
        if problem["type"] != "value_error":
            text = _EXPECTED.get(problem["type"])
            limits = {name: _plain(limit) for name, limit in problem.get("ctx", {}).items()}
            wanted.append(text.format(**limits) if text else problem["msg"])
    return list(dict.fromkeys(wanted))


def _nearest(key: str, known: Collection[str]) -> str:
    """Return ``; did you mean '…'?`` for an unknown ``key``, or nothing if no known key is near."""
    if key in known:  # a dotted name where YAML wants a group
        section, name = key.rsplit(".", 1)
        return f"; in a file, write '{name}' in a group '{section}'"
    names = [*known, *sorted({name.rsplit(".", 1)[0] for name in known if "." in name})]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    last = key.rsplit(".", 1)[-1]
    same = [name for name in known if name.rsplit(".", 1)[-1] == last]  # the right word in the wrong place
    best = [*same, *near]
    return f"; did you mean '{best[0]}'?" if best else ""


def _plain(limit: object) -> object:
    """Write a bound such as 1.0 as 1."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, str | bool | int | float | list | dict) else f"'{value}'"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
