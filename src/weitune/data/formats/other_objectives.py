"""Refuses rows made for another training objective, from which a model would learn the wrong answers.

    {"prompt": …, "chosen": …, "rejected": …}        two answers that were compared (DPO, reward models)
    {"prompt": …, "completion": …, "label": false}   an answer and a verdict on it (KTO)
    {"messages": …, "images": ["a.png"]}             an answer about a picture

With `columns` the recipe names the field with the answer, so other answers and pictures are ignored. A verdict is
still a fault, because the recipe does not tell which rows have a bad answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from weitune.data.formats.fields import Fields, is_empty
from weitune.data.problems import shown, shown_name

_COMPARED = re.compile(
    r"(chosen|rejected)([_-]?(responses?|messages?|answers?|outputs?|completions?|conversations?|texts?))?"
    r"|(responses?|messages?|answers?|outputs?|completions?)[_-]?(chosen|rejected)"
    r"|(non[_-]?|dis[_-]?)?preferred[_-]?(output|response|answer)|dis[_-]?preferred"
    r"|(positive|negative|better|worse|bad|winning|losing)[_-]?(responses?|messages?|answers?|outputs?|completions?)",
    re.IGNORECASE,
)
_VERDICTS = frozenset({"kto_tag", "label", "desirable", "is_desirable", "is_preferred", "is_chosen"})
_MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})


def refuse_other_objectives(
    fields: Fields, row: Mapping[str, Any], read_as: str | None, columns: frozenset[str]
) -> None:
    """Note a fault for every field that shows that ``row`` (of format ``read_as``) is for another objective."""
    for name in _suspicious(tuple(row)):
        value = row[name]
        if is_empty(value) or name in columns:
            continue
        if name.casefold() in _VERDICTS:
            if read_as is not None and (name.casefold() == "kto_tag" or _is_verdict(value, read_as)):
                fields.fault("data.other_objectives.verdict", field=name, name=shown_name(name), value=shown(value))
        elif not columns:
            fields.fault(_refusal(name, value), field=name, name=shown_name(name), value=shown(value))


@lru_cache(maxsize=256)
def _suspicious(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of fields that may show another objective: usually none."""
    known = _VERDICTS | _MEDIA
    return tuple(name for name in names if name.casefold() in known or _COMPARED.fullmatch(name))


def _is_verdict(value: Any, read_as: str | None) -> bool:
    """Return whether ``value`` may judge an answer: true, false, 1 or 0.

    In a table whose columns the recipe names, 1 and 0 are more likely classes.
    """
    if isinstance(value, str):
        value = value.strip().casefold()
    if isinstance(value, bool) or value in ("true", "false"):
        return True
    return read_as != "columns" and value in (0, 1, "0", "1", "0.0", "1.0")


def _refusal(name: str, value: Any) -> str:
    if name.casefold() in _MEDIA:
        return "data.other_objectives.media"
    is_text = isinstance(value, str)
    return "data.other_objectives.compared_answer" if is_text else "data.other_objectives.compared_messages"
