"""Reads a row field by field, collecting every fault instead of stopping at the first."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from weitune.data.formats.strict_json import decode, undecodable, unwritable
from weitune.data.problems import Problem, data_problem, shown, shown_name
from weitune.messages import in_english, say

UNREADABLE: Any = object()
"""Returned for a value whose fault has been noted."""
_ABSENT = object()
_INDEX = re.compile(r"\[\d+\]")


@dataclass(slots=True)
class Notes:
    """What the user should know about the rows of a source that is not a fault."""

    unused: Counter[str] = field(default_factory=Counter)
    """Fields that nothing reads, with the number of rows that have them."""
    null_fields: int = 0
    """Nulls that were removed from nested fields."""
    remarks: Counter[str] = field(default_factory=Counter)
    """Other remarks, with the number of rows that they concern."""


class Fields:
    """Reads the fields of one row, and collects its faults and ``notes``.

    A parameter ``what`` is the message id of what a value should be, such as "a function call".
    """

    def __init__(self, notes: Notes) -> None:
        self.faults: list[Problem] = []
        self._notes = notes
        self._misnamed: dict[str, str] = {}
        self._remarked: set[str] = set()

    def fault(self, message_id: str, /, *, field: str, **values: Any) -> None:
        self.faults.append(data_problem(message_id, field=field, **values))

    def remark(self, message_id: str) -> None:
        if message_id not in self._remarked:
            self._remarked.add(message_id)
            self._notes.remarks[in_english(say(message_id))] += 1

    def count_unread(self, holder: Mapping[str, Any], known: frozenset[str], where: str = "") -> None:
        if not known.issuperset(holder):
            for key in holder:
                if key not in known:
                    self.count_unread_name(_shown_name(key), where)
                    if (name := _visible(key)) in known and name not in holder:
                        self._misnamed[where + name] = key

    def count_unread_name(self, name: str, where: str = "") -> None:
        """Count a field that nothing reads; all elements of a list share a count."""
        self._notes.unused[_INDEX.sub("[]", where) + name] += 1

    def check_names(self) -> None:
        """Note a fault for every field that is not read because of invisible characters in its name."""
        if not self._misnamed:
            return
        noted = {problem.field for problem in self.faults}
        for expected, name in self._misnamed.items():
            if expected not in noted:
                self.fault("data.fields.misnamed_field", field=expected, name=expected, misspelled=shown_name(name))

    def text(self, holder: Mapping[str, Any], key: str, where: str = "", default: str | None = None) -> str:
        """Return the string under ``key``, or ``default`` if the key is absent; "" after noting a fault."""
        value = holder.get(key, _ABSENT)
        if isinstance(value, str):
            return self.checked(value, where + key)
        if value is _ABSENT:
            if default is not None:
                return default
            self.missing(holder, key, "data.fields.string", where)
        elif value is None:
            self.fault("data.fields.null_field", field=where + key)
        else:
            self.fault("data.fields.not_a_string", field=where + key, value=shown(value))
        return ""

    def optional_text(self, holder: Mapping[str, Any], key: str, where: str = "") -> str | None:
        return None if holder.get(key) is None else self.text(holder, key, where)

    def messages(self, holder: Mapping[str, Any], key: str, where: str = "") -> Sequence[Any]:
        """Return the list of messages under ``key``, which may be JSON in a string but not empty."""
        value = holder.get(key, _ABSENT)
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            value = self.json(value, "data.fields.list_of_messages", where + key)
        if isinstance(value, list) and value:
            return value
        if value is _ABSENT:
            self.missing(holder, key, "data.fields.list_of_messages", where)
        elif value is None:
            self.fault("data.fields.null_messages", field=where + key)
        elif value == []:
            self.fault("data.fields.empty_conversation", field=where + key)
        elif value is not UNREADABLE:
            self.fault("data.fields.not_a_list_of_messages", field=where + key, value=shown(value))
        return ()

    def missing(self, holder: Mapping[str, Any], key: str, what: str, where: str = "") -> None:
        """Note the fault that ``holder`` has no field ``key``, or one whose name only looks like it."""
        name = where + key
        lookalike = next((other for other in holder if _visible(other).casefold() == key.casefold()), None)
        if lookalike is None:
            self.fault("data.fields.missing_field", field=name, name=name, expected=say(what))
        else:
            other = shown_name(lookalike)
            self.fault("data.fields.lookalike_field", field=name, name=name, expected=say(what), lookalike=other)

    def checked(self, text: str, field: str) -> str:
        """Return ``text``; note a fault if it contains half of a surrogate pair, as for a byte that did not decode."""
        if undecodable(text):
            self.fault("data.fields.undecodable_text", field=field)
        return text

    def json(self, value: Any, what: str, field: str) -> Any:
        """Return ``value``, decoded if it is JSON in a string; UNREADABLE after noting a fault."""
        if not isinstance(value, str):
            return value
        try:
            return decode(value)
        except ValueError as error:
            values = {"expected": say(what), "value": shown(value), "error": str(error)}
            self.fault("data.fields.not_valid_json", field=field, **values)
            return UNREADABLE

    def writable(self, value: Any, field: str) -> bool:
        """Return whether ``value`` can be written as JSON; note a fault if not."""
        if (fault := unwritable(value)) is not None:
            message_id, values = fault
            self.fault(message_id, field=field, **values)
        return fault is None


def is_empty(value: Any) -> bool:
    """Return whether an optional field is empty: null, NaN (from pandas), "null", or a blank string, list or object."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value in ([], {}) or (isinstance(value, str) and value.strip() in ("", "null"))


@lru_cache(maxsize=256)
def _visible(name: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char)[0] not in "CZ")


_shown_name = lru_cache(maxsize=256)(shown_name)
