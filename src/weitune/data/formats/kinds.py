"""The kinds of rows: a conversation to learn, two answers that were compared, or an answer with a verdict on it.

    {"prompt": …, "completion": …}                   conversations
    {"prompt": …, "chosen": …, "rejected": …}        pairs
    {"prompt": …, "completion": …, "label": false}   judged

Any format of :mod:`weitune.data.formats.dialogues` can have rows of each kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from weitune.data.formats.fields import is_empty

Kind = Literal["conversations", "pairs", "judged"]
CONVERSATIONS: frozenset[Kind] = frozenset({"conversations"})
PAIRS_ONLY: frozenset[Kind] = frozenset({"pairs"})
PREFERENCES: frozenset[Kind] = frozenset({"pairs", "judged"})
ANY_KIND: frozenset[Kind] = CONVERSATIONS | PREFERENCES

SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
)
"""Names of the fields with the better answer and the worse one."""
VERDICTS = frozenset({"kto_tag", "label", "desirable", "is_desirable", "is_preferred", "is_chosen"})
"""Names of fields that may judge the answer, in lower case."""
COMPARED = re.compile(
    r"(chosen|rejected)([_-]?(responses?|messages?|answers?|outputs?|completions?|conversations?|texts?))?"
    r"|(responses?|messages?|answers?|outputs?|completions?)[_-]?(chosen|rejected)"
    r"|(non[_-]?|dis[_-]?)?preferred[_-]?(output|response|answer)|dis[_-]?preferred"
    r"|(positive|negative|better|worse|bad|winning|losing)[_-]?(responses?|messages?|answers?|outputs?|completions?)",
    re.IGNORECASE,
)
"""Names of fields with answers that were compared, in the spellings of many data sets."""
TWO_ANSWERS = "output"
"""Alpaca's field, if it holds a list of the better answer and the worse one."""
_SIDES = frozenset(name for pair in SIDES for name in pair)
_OWN_ANSWERS = frozenset({"completion", "response", "answer", "output", "messages", "conversations", "conversation"})
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


def kind_of(row: Mapping[str, Any], columns: frozenset[str], of_file: Kind | None) -> Kind:
    """Return the kind of ``row`` of a file whose earlier rows are of the kind ``of_file``.

    An empty field does not make a pair of a row or judge it, unless the rows before it were of that kind already. With
    ``columns``, the recipe names the answer.
    """
    sides, verdicts = _telling(tuple(row))
    if not sides and not verdicts and of_file != "pairs" and type(row.get(TWO_ANSWERS)) is not list:
        return "conversations"  # nearly all rows
    if not columns and (compared_fields(row) or (of_file == "pairs" and (sides or not _has_own_answer(row)))):
        return "pairs"
    if verdict_field(row, columns) is not None or (of_file == "judged" and not columns.issuperset(verdicts)):
        return "judged"
    return "conversations"


def compared_fields(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the fields of ``row`` with answers that were compared, if there are any."""
    sides = tuple(name for name in _telling(tuple(row))[0] if not is_empty(row[name]))
    return sides or ((TWO_ANSWERS,) if _are_two_texts(row.get(TWO_ANSWERS)) else ())


def verdict_field(row: Mapping[str, Any], columns: frozenset[str]) -> str | None:
    """Return the name of the field of ``row`` that judges its answer, or None.

    In a table whose columns the recipe names, 1 and 0 are more likely classes.
    """
    for name in _telling(tuple(row))[1]:
        value = row[name]
        if name in columns or is_empty(value):
            continue
        if name.casefold() == "kto_tag":
            return name
        says_so = isinstance(value, bool) or (isinstance(value, str) and value.strip().casefold() in ("true", "false"))
        if says_so or (not columns and verdict(value) is not None):
            return name
    return None


def verdict_name(row: Mapping[str, Any], columns: frozenset[str]) -> str:
    """Return the name of the field for the verdict in a judged ``row``, whatever its value is."""
    given = verdict_field(row, columns)
    return next(name for name in _telling(tuple(row))[1] if name not in columns) if given is None else given


def side_names(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the fields for the better and the worse answer in ``row``, a pair; it may lack one."""
    present = compared_fields(row) or _telling(tuple(row))[0]
    return next((pair for pair in SIDES if not set(pair).isdisjoint(present)), SIDES[0])


def verdict(value: Any) -> bool | None:
    """Return whether an answer was liked: true, false, 1 or 0, also as a string; None if it is something else."""
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    text = value.strip().casefold() if isinstance(value, str) else None
    return True if text in _TRUE else False if text in _FALSE else None


def _has_own_answer(row: Mapping[str, Any]) -> bool:
    """Return whether ``row`` may have one answer in the place that conversations have it."""
    return not _OWN_ANSWERS.isdisjoint(row) and not isinstance(row.get(TWO_ANSWERS), list)


def _are_two_texts(value: object) -> bool:
    return type(value) is list and len(value) == 2 and all(isinstance(text, str) for text in value)


@lru_cache(maxsize=256)
def _telling(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return those of ``names`` that are names of compared answers, and of verdicts: usually none."""
    sides = tuple(name for name in names if name in _SIDES)
    return sides, tuple(name for name in names if name.casefold() in VERDICTS)
