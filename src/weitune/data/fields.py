"""Take a row apart, field by field, noting every fault instead of stopping at the first."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from weitune.data.control import texts_in
from weitune.data.problems import Problem, shown
from weitune.data.textfile import undecodable

_ABSENT = object()
_NULL_CURE = 'Write "" if it is meant to be empty, or remove the row.'
_TYPE_CURE = "Write a value of the expected kind."


class Fields:
    """What reading one row has found: faults, and the fields that nothing reads."""

    def __init__(self, unused: Counter[str]) -> None:
        """Count unread fields in ``unused``, which all rows of a file share."""
        self.faults: list[Problem] = []
        self._unused = unused

    def fault(self, kind: str, expected: str, found: str, cure: str, field: str) -> None:
        """Note a fault."""
        self.faults.append(Problem(kind, expected, found, cure, field=field))

    def only(self, holder: Mapping[str, Any], known: frozenset[str], where: str = "") -> None:
        """Count the fields of ``holder`` that are not ``known``."""
        if not known.issuperset(holder):
            self._unused.update(where + key for key in holder if key not in known)

    def text(self, holder: Mapping[str, Any], key: str, where: str = "", default: str | None = None) -> str:
        """Return the text under ``key``; ``default`` if it is absent and there is one."""
        value = holder.get(key, _ABSENT)
        if isinstance(value, str):
            if undecodable(value):
                self._undecodable(where + key)
            return value
        if value is _ABSENT:
            if default is not None:
                return default
            self.fault(
                "missing field",
                "a text",
                f"no field `{where}{key}`",
                "Add the field, or say which columns to read with `columns`.",
                where + key,
            )
        elif value is None:
            self.fault("null field", "a text", "null", _NULL_CURE, where + key)
        else:
            self.fault("wrong type", "a text", shown(value), "Write it as a text in quotes.", where + key)
        return ""

    def optional_text(self, holder: Mapping[str, Any], key: str, where: str = "") -> str | None:
        """Return the text under ``key``, or None if it is absent or null."""
        return None if holder.get(key) is None else self.text(holder, key, where)

    def items(self, holder: Mapping[str, Any], key: str, expected: str, where: str = "") -> Sequence[Any]:
        """Return the list under ``key``, not empty."""
        value = holder.get(key, _ABSENT)
        if isinstance(value, list) and value:
            return value
        found = f"no field `{where}{key}`" if value is _ABSENT else "an empty list" if value == [] else shown(value)
        kind = "missing field" if value is _ABSENT else "null field" if value is None else "wrong type"
        self.fault(
            "empty conversation" if value == [] else kind,
            expected,
            found,
            "Add the turns, or remove the row.",
            where + key,
        )
        return ()

    def weight(self, holder: Mapping[str, Any], where: str = "") -> float:
        """Return the weight of a message, under ``weight`` or ``loss_weight``; 1 if it has none."""
        for key in ("weight", "loss_weight"):
            value = holder.get(key)
            if value is None:
                continue
            if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
                return float(value)
            self.fault(
                "wrong weight",
                "a number of at least 0",
                shown(value),
                "0 means: do not learn this message.",
                where + key,
            )
        return 1.0

    def decodable(self, value: Any, field: str) -> None:
        """Note a fault if a text anywhere in the JSON ``value`` holds what is no character."""
        if any(map(undecodable, texts_in(value))):
            self._undecodable(field)

    def _undecodable(self, field: str) -> None:
        found = "bytes (or half of a surrogate pair) that are no character"
        cure = "Save the file as UTF-8 and mend the characters of this row."
        self.fault("undecodable text", "characters in the file's encoding", found, cure, field)

    def json(self, value: Any, expected: str, field: str) -> Any:
        """Return ``value``, decoded if it is JSON in a text; None after noting a fault."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fault(
                "not valid JSON",
                f"{expected} as JSON",
                f"{shown(value)} ({error})",
                "Mend the JSON inside this text.",
                field,
            )
            return None
