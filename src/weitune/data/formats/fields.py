"""Take a row apart, field by field, noting every fault instead of stopping at the first."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from weitune.data.problems import Problem, data_problem, shown, shown_name
from weitune.data.read.text_file import undecodable
from weitune.messages import say

UNREADABLE: Any = object()
"""Stands for a value whose fault has been noted."""
_ABSENT = object()
_DEEPEST = 100
"""Levels of nesting in a call's arguments or a tool's schema."""
_INDEX = re.compile(r"\[\d+\]")
_NULL_CURE = 'Write "" if it is meant to be empty, or remove the row.'
_MISSING_CURE = "Add the field, or say which columns to read with `columns`."
_NAME_CURE = "Rename the field; its name may hold characters that cannot be seen."
_JSON_CURE = "Correct the JSON in this text: write it with json.dumps (Python's str() makes no JSON)."


class Fields:
    """What reading one row has found: faults, the fields that nothing reads, and remarks for the report."""

    def __init__(self, unused: Counter[str], remarks: Counter[str] | None = None) -> None:
        """Count unread fields in ``unused`` and remarks in ``remarks``, which all rows of a file share."""
        self.faults: list[Problem] = []
        self._unused = unused
        self._remarks = Counter[str]() if remarks is None else remarks
        self._misnamed: dict[str, str] = {}
        self._remarked: set[str] = set()

    def fault(self, message_id: str, /, *, field: str, **values: Any) -> None:
        """Add the problem ``message_id`` of the catalogue, in ``field``, to the faults."""
        self.faults.append(data_problem(message_id, field=field, **values))

    def remark(self, text: str) -> None:
        """Count something about this row that the report should say, once."""
        if text not in self._remarked:
            self._remarked.add(text)
            self._remarks[text] += 1

    def only(self, holder: Mapping[str, Any], known: frozenset[str], where: str = "") -> None:
        """Count the fields of ``holder`` that are not ``known``."""
        if not known.issuperset(holder):
            for key in holder:
                if key not in known:
                    self.unread(_shown_name(key), where)
                    if (name := _visible(key)) in known and name not in holder:
                        self._misnamed[where + name] = key

    def unread(self, name: str, where: str = "") -> None:
        """Count a field that nothing reads; the places of a list count as one."""
        self._unused[_INDEX.sub("[]", where) + name] += 1

    def check_names(self) -> None:
        """Note a fault for every field that only characters nobody sees keep from being read."""
        noted = {problem.field for problem in self.faults}
        for field, name in self._misnamed.items():
            if field not in noted:
                self.fault("data.fields.misnamed_field", field=field, field_text=field, name=shown_name(name))

    def text(self, holder: Mapping[str, Any], key: str, where: str = "", default: str | None = None) -> str:
        """Return the text under ``key``; ``default`` if it is absent and there is one."""
        value = holder.get(key, _ABSENT)
        if isinstance(value, str):
            return self.characters(value, where + key)
        if value is _ABSENT:
            if default is not None:
                return default
            self._missing(holder, key, "a text", where)
        elif value is None:
            self.fault("data.fields.null_field", field=where + key)
        else:
            self.fault("data.fields.wrong_type", field=where + key, value=shown(value))
        return ""

    def optional_text(self, holder: Mapping[str, Any], key: str, where: str = "") -> str | None:
        """Return the text under ``key``, or None if it is absent or null."""
        return None if holder.get(key) is None else self.text(holder, key, where)

    def items(self, holder: Mapping[str, Any], key: str, expected: str, where: str = "") -> Sequence[Any]:
        """Return the list under ``key``, which may be JSON in a text but not empty."""
        value = holder.get(key, _ABSENT)
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            value = self.json(value, expected, where + key)
        if isinstance(value, list) and value:
            return value
        fix = say("data.fields.add_turns_remove_row")
        if value is _ABSENT:
            self._missing(holder, key, expected, where)
        elif value == []:
            self.fault("data.fields.empty_conversation", field=where + key, expected=expected, fix=fix)
        elif value is not UNREADABLE:
            kind = "null field" if value is None else "wrong type"
            self.fault(
                "data.fields.empty_list", kind=kind, expected=expected, value=shown(value), fix=fix, field=where + key
            )
        return ()

    def _missing(self, holder: Mapping[str, Any], key: str, expected: str, where: str) -> None:
        """Note that there is no ``key``, and the name that looks like it, if there is one."""
        found, fix = f"no field `{where}{key}`", _MISSING_CURE
        twin = next((name for name in holder if _visible(name).casefold() == key.casefold()), None)
        if twin is not None:
            found, fix = f"{found}, but one named `{shown_name(twin)}`", _NAME_CURE
        self.fault("data.fields.missing_field", field=where + key, expected=expected, found=found, fix=fix)

    def characters(self, text: str, field: str) -> str:
        """Return ``text``, after noting a fault if part of it is no character."""
        if undecodable(text):
            self._undecodable(field)
        return text

    def _undecodable(self, field: str) -> None:
        self.fault("data.fields.undecodable_text", field=field)

    def json(self, value: Any, expected: str, field: str) -> Any:
        """Return ``value``, decoded if it is JSON in a text; UNREADABLE after noting a fault."""
        if not isinstance(value, str):
            return value
        try:
            return _DECODER.decode(value)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            self.fault("data.fields.not_valid_json", field=field, expected=expected, value=shown(value), reason=reason)
            return UNREADABLE

    def sound(self, value: Any, field: str) -> bool:
        """Tell whether ``value`` can be written as JSON; note a fault if not."""
        found = _unsound(value)
        if found == _NO_CHARACTER:
            self._undecodable(field)
        elif found:
            self.fault("data.fields.not_json_value", field=field, found=found, deepest=_DEEPEST)
        return not found


_NO_CHARACTER = "no character"


def _unsound(value: Any) -> str | None:
    """Return what in ``value`` JSON in UTF-8 cannot hold, going through it level by level."""
    level = [value]
    for _ in range(_DEEPEST):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if undecodable(item):
                    return _NO_CHARACTER
            elif isinstance(item, dict):
                deeper += item
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, float):
                if not math.isfinite(item):
                    return shown(item)
            elif item is not None and not isinstance(item, int):
                return shown(item)
        if not deeper:
            return None
        level = deeper
    return f"values nested more than {_DEEPEST} levels deep"


@lru_cache(maxsize=256)
def _visible(name: str) -> str:
    """Return ``name`` without what the eye does not see: blanks, invisible characters and full width."""
    return "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char)[0] not in "CZ")


@lru_cache(maxsize=256)
def _shown_name(name: str) -> str:
    return shown_name(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {next(key for key in counts if counts[key] > 1)!r} twice")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number out of range")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
"""Reads JSON in a cell as strictly as rows are read, and raises for what would be lost."""
