"""Refuses rows of another kind than is wanted, from which a model would learn the wrong answers, and rows about media.

    {"prompt": …, "chosen": …, "rejected": …}        two answers that were compared: pairs
    {"prompt": …, "completion": …, "label": false}   an answer and a verdict on it: judged
    {"messages": …, "images": ["a.png"]}             an answer about a picture: never

With `columns` the recipe names the field with the answer, so other answers and pictures are ignored. A verdict is
still a fault, because the recipe does not tell which rows have a bad answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from weitune.data.conversation import Origin
from weitune.data.formats.fields import Fields, is_empty
from weitune.data.formats.kinds import COMPARED, Kind, compared_fields, verdict_field
from weitune.data.problems import Problem, data_problem, shown, shown_name
from weitune.messages import say

_KINDS: Mapping[Kind, str] = {
    "conversations": "data.other_objectives.conversation",
    "pairs": "data.other_objectives.pair",
    "judged": "data.other_objectives.judged",
}
_WITH_NAME: Mapping[Kind, str] = {
    "pairs": "data.other_objectives.pair_in_field",
    "judged": "data.other_objectives.judged_in_field",
}
"""Message ids: what a row of a kind is, and the field that makes it one."""
_MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})


def refuse_other_objectives(
    fields: Fields, row: Mapping[str, Any], columns: frozenset[str], kind: Kind, wanted: frozenset[Kind]
) -> None:
    """Note the faults that ``row`` is about pictures or sounds, or of a ``kind`` that is not ``wanted``.

    Answers that were compared and have unknown names are a fault whatever is wanted.
    """
    if kind not in wanted:
        _refuse_kind(fields, row, columns, kind, wanted)
    for name in _suspicious(tuple(row)):
        value = row[name]
        if columns or is_empty(value):
            continue
        if name.casefold() in _MEDIA:
            fields.fault("data.other_objectives.media", field=name, name=shown_name(name), value=shown(value))
        elif kind != "pairs":
            fields.fault("data.other_objectives.unknown_names", field=name, name=shown_name(name))


def mixed_kinds(
    row: Mapping[str, Any],
    origin: Origin,
    columns: frozenset[str],
    kind: Kind,
    of_file: Kind,
    first: Origin,
    *,
    first_too: bool,
) -> list[Problem]:
    """Return the problem that ``row`` is of another ``kind`` than the rows of its file from the ``first`` on.

    If ``first_too``, rows of both kinds could be read, so that the first one may as well be the wrong one.
    """
    name = verdict_field(row, columns) if kind == "judged" else next(iter(compared_fields(row)), None)
    found = say(_WITH_NAME[kind], name=shown_name(name)) if name is not None else say(_KINDS[kind])
    expected = say(_KINDS[of_file])
    values: dict[str, Any] = {"expected": expected, "first": first.row, "found": found}
    problems = [data_problem("data.other_objectives.mixed_kinds", field=name or "", **values).at(origin)]
    if first_too:
        values = {"expected": say(_KINDS[kind]), "first": origin.row, "found": expected}
        problems.append(data_problem("data.other_objectives.mixed_kinds", **values).at(first))
    return problems


def _refuse_kind(
    fields: Fields, row: Mapping[str, Any], columns: frozenset[str], kind: Kind, wanted: frozenset[Kind]
) -> None:
    if kind == "conversations":
        nothing = "data.other_objectives.no_verdict" if "judged" in wanted else "data.other_objectives.one_answer"
        fields.fault(nothing, field="")
    elif kind == "judged":
        name = verdict_field(row, columns) or ""
        among_pairs = "conversations" not in wanted
        verdict = "data.other_objectives.verdict_among_pairs" if among_pairs else "data.other_objectives.verdict"
        fields.fault(verdict, field=name, name=shown_name(name), value=shown(row.get(name)))
    elif "conversations" not in wanted:
        fields.fault("data.other_objectives.pair_among_judged", field=next(iter(compared_fields(row)), ""))
    else:
        for name in ("chosen", "rejected") if columns else compared_fields(row):
            is_text = isinstance(row.get(name), str)
            one = "data.other_objectives.compared_answer" if is_text else "data.other_objectives.compared_messages"
            fields.fault(one, field=name, name=shown_name(name))


@lru_cache(maxsize=256)
def _suspicious(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of fields that may show another objective: usually none."""
    return tuple(name for name in names if name.casefold() in _MEDIA or COMPARED.fullmatch(name))
